"""Async Python client of the Crossfade sidecar."""
