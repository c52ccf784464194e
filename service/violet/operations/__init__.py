"""What the proxy server does with its data: decisions. Pure.

A decision is given documents and says which writes follow, or refuses by raising. The
transaction that reads for it and commits what it says is in `operations/methods`; it
may decide several times, each time by what is stored then.
"""
