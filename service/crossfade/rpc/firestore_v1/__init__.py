"""google.firestore.v1, Firestore's own protocol, over any backend.

The front holds protocol only: which messages in which order. What a query matches, what
a write makes of a document and what a transaction may see is the backend's.
"""

from crossfade.rpc.firestore_v1.server import SERVICE, Server, methods, serve

__all__ = ["SERVICE", "Server", "methods", "serve"]
