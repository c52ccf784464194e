"""What the checks look at."""

from dataclasses import dataclass

from crossfade.ramp import Figures, Limits


@dataclass(frozen=True, slots=True)
class Facts:
    """`oldest_seconds`: age of the oldest pending row. `figures`: of all collections, since the
    sidecars that are asked have been counting."""

    copied: bool
    pending: int
    oldest_seconds: float
    dead: int
    figures: Figures
    limits: Limits
