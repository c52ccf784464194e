"""What a call through the sidecar costs, as ratios: `python -m loadtests.bench`.

Absolute figures belong to one machine and one hour, so every case runs beside the
ones it is compared with, in turns (A B A B), and each group holds its reference
twice: where these two differ by more than the margin, nothing is said.
"""
