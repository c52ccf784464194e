"""What a job over both stores works with."""

from dataclasses import dataclass

from crossfade.control import Control
from crossfade.document import Database
from crossfade.mapping import Mappings
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.held import HeldPages
from crossfade.stores.postgres.jobs import Jobs
from crossfade.stores.postgres.mirror import Mirror


@dataclass(frozen=True, slots=True)
class Both:
    """Of one group of collections. `timeout`: seconds of one call."""

    control: Control
    firestore: FirestoreStore
    mirror: Mirror
    held: HeldPages
    jobs: Jobs
    mappings: Mappings
    database: Database
    timeout: float = 30.0

    @property
    def group(self) -> str:
        return self.control.group.name
