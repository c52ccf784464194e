"""Load test and benchmark of the sidecar."""
