"""The Python client's own system tests against a server of Firestore's protocol.

They ship in the source archive of google-cloud-firestore. Nothing of them is kept here:
the archive is fetched into build/, and run in a process of its own with our plugin.
`python -m tests.conformance --help` says more.
"""
