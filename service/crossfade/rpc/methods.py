"""Which role each method needs: the one table. A method that is not in it needs an admin."""

from collections.abc import Mapping
from dataclasses import dataclass

from crossfade.access import Role


@dataclass(frozen=True, slots=True)
class Needs:
    """`documents`: field 1 of the reply's messages is a document each, which limits count.
    `choice`: its callers may choose the store that answers."""

    role: Role
    documents: bool = False
    choice: bool = False


READS = Needs(Role.READER, choice=True)
FINDS = Needs(Role.READER, documents=True, choice=True)
LOOKS = Needs(Role.READER)
"""At what the authority alone is asked, or at nothing that is stored."""
WRITES = Needs(Role.WRITER)
ADMINISTERS = Needs(Role.ADMIN)

_SERVICES: Mapping[str, Mapping[str, Needs]] = {
    "crossfade.v1.Crossfade": {
        "GetDocument": READS,
        "BatchGetDocuments": FINDS,
        "Query": FINDS,
        "Aggregate": READS,
        "Watch": LOOKS,
        "Commit": WRITES,
    },
    "google.firestore.v1.Firestore": {
        "GetDocument": READS,
        "ListDocuments": FINDS,
        "BatchGetDocuments": FINDS,
        "RunQuery": FINDS,
        "RunAggregationQuery": READS,
        "ExecutePipeline": LOOKS,
        "PartitionQuery": LOOKS,
        "ListCollectionIds": LOOKS,
        "Listen": LOOKS,
        # Transactions lock nothing before they are committed.
        "BeginTransaction": LOOKS,
        "Rollback": LOOKS,
        "CreateDocument": WRITES,
        "UpdateDocument": WRITES,
        "DeleteDocument": WRITES,
        "BatchWrite": WRITES,
        "Commit": WRITES,
        "Write": WRITES,
    },
}
METHODS: Mapping[str, Needs] = {
    f"{service}/{method}": needs
    for service, methods in _SERVICES.items()
    for method, needs in methods.items()
}


def needs_of(name: str) -> Needs:
    """Of a method by its full name: "crossfade.v1.Crossfade/GetDocument"."""
    return METHODS.get(name, ADMINISTERS)
