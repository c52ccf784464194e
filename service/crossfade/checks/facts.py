"""What the checks look at."""

from dataclasses import dataclass

from crossfade.ramp import Figures, Limits
from crossfade.stores.postgres.findings import Certificate


@dataclass(frozen=True, slots=True)
class Facts:
    """`certificate`: of the latest validation of everything; `epoch`, `generation` and
    `fingerprint` (of the tables) are what it has to agree with, and it may be `certificate_age`
    seconds old. `oldest_seconds`: age of the oldest pending row. `figures`: of all collections,
    since the sidecars that are asked have been counting."""

    copied: bool
    pending: int
    oldest_seconds: float
    dead: int
    figures: Figures
    limits: Limits
    epoch: int = 0
    generation: int = 0
    fingerprint: str = ""
    certificate: Certificate | None = None
    certificate_age: float = 86_400.0
