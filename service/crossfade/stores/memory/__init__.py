"""The in-memory store: the readable reference, and the data of the embedded Firestore."""

from crossfade.stores.memory.store import MemoryStore, MemoryStores, wall_clock

__all__ = ["MemoryStore", "MemoryStores", "wall_clock"]
