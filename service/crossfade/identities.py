"""Ids of transactions: what kind one is, and the epochs in which it began. Pure.

An id is all that a sidecar needs to go on with a transaction of Firestore's that another one
has begun. It is a letter (which authority; a capital: read-only), the epoch of every group in
their order, and what the authority knows the transaction by.
"""

from collections.abc import Mapping, Sequence

from crossfade.plan import StoreName

FIRESTORE, POSTGRESQL = b"f", b"p"
UNBOUND = b"u"
"""Begun while groups have different authorities: what it touches first says which is its own."""
_OF = {StoreName.FIRESTORE: FIRESTORE, StoreName.POSTGRESQL: POSTGRESQL}
_EPOCH_BYTES = 8


class Identities:
    """Makes and reads the ids of a sidecar whose groups have these names."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._groups = groups
        self._head = 1 + _EPOCH_BYTES * len(groups)

    def make(
        self,
        authority: StoreName | None,
        epochs: Mapping[str, int],
        tail: bytes,
        *,
        read_only: bool,
    ) -> bytes:
        """`authority` None: it is not known yet."""
        kind = UNBOUND if authority is None else _OF[authority]
        head = b"".join(epochs[name].to_bytes(_EPOCH_BYTES, "big") for name in self._groups)
        return (kind.upper() if read_only else kind) + head + tail

    def legal(self, identity: bytes) -> bool:
        return len(identity) > self._head and kind_of(identity) in {FIRESTORE, POSTGRESQL, UNBOUND}

    def epochs(self, identity: bytes) -> dict[str, int]:
        starts = range(1, self._head, _EPOCH_BYTES)
        return {
            name: int.from_bytes(identity[start : start + _EPOCH_BYTES], "big")
            for name, start in zip(self._groups, starts, strict=True)
        }

    def handle(self, identity: bytes) -> bytes:
        """What the authority knows it by."""
        return identity[self._head :]


def kind_of(identity: bytes) -> bytes:
    return identity[:1].lower()


def reads_only(identity: bytes) -> bool:
    """Whether an id is that of a read-only transaction."""
    return identity[:1].isupper()
