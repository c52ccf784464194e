"""The RPCs of violet.v1: what each reads, in a transaction where it writes, and replies.

One class per service; its methods bear the names of the RPCs. What is decided is in the
modules beside this package.
"""
