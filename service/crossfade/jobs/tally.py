"""What a comparison has counted, by collection id, as numbers that can be added up. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from crossfade import redaction
from crossfade.content import LANES, Content
from crossfade.diff import Difference
from crossfade.document import collection_id, format_field_path
from crossfade.mapping import escape_path, unescape_path
from crossfade.plan import StoreName
from crossfade.verdict import BAD, Verdict

Counts = dict[str, dict[str, int]]
"""By collection id, then by word."""

MAX_FIELDS = 200
"""Differing fields of a collection that are counted by name."""
OTHER_FIELDS = "(others)"
SKIPPED = "skipped"
"""Documents that were not looked at: older than what was asked for."""
COMPARED = "compared"
"""Every document that is done, whatever came of it."""
RULED_OUT = "ruled out"
"""Documents that differ only where a rule of the settings lets them."""
REPAIRED = "repaired"
_FIELD, _RULE, _DIGEST = "field:", "rule:", "digest:"


class Tally:
    """Counts of documents: by store (its name), by verdict, by rule, and by differing field;
    and the digest of either store."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.counts: Counts = {name: dict(words) for name, words in (counts or {}).items()}

    def count(self, collection: str, word: str, by: int = 1) -> None:
        words = self.counts.setdefault(collection, {})
        word = str(word)  # exactly: a JSON writer refuses the members of an enum as keys
        words[word] = words.get(word, 0) + by

    def add(self, other: "Tally") -> None:
        for collection, words in other.counts.items():
            for word, by in words.items():
                self.count(collection, word, by)

    # --- counting -----------------------------------------------------------------------------

    def equal(self, collection: str, lanes: Iterable[int]) -> None:
        """A document that both stores hold alike. The path of nearly every document."""
        words = self.counts.setdefault(collection, {})
        get = words.get
        for word in _EQUAL:
            words[word] = get(word, 0) + 1
        for number, lane in enumerate(lanes):
            for names in _LANES:
                words[names[number]] = get(names[number], 0) + lane

    def held(self, collection: str, store: StoreName, lanes: Iterable[int]) -> None:
        """A document that a store holds, whatever the other one does."""
        self.count(collection, store.value)
        for number, lane in enumerate(lanes):
            self.count(collection, f"{_DIGEST}{store.value}:{number}", lane)

    def both(self, left: Content | None, right: Content | None) -> None:
        """What Firestore and PostgreSQL hold at a path."""
        for store, content in ((StoreName.FIRESTORE, left), (StoreName.POSTGRESQL, right)):
            if content is not None:
                self.held(collection_id(content.path), store, content.lanes())

    def rule(self, collection: str, name: str, by: int = 1) -> None:
        self.count(collection, _RULE + name, by)

    def fields(self, collection: str, differences: Iterable[Difference]) -> None:
        """The fields in which a document differs, each once; items of arrays as their array."""
        words = self.counts.setdefault(collection, {})
        known = sum(1 for word in words if word.startswith(_FIELD))
        for name, kind in {(_name(each), each.kind.value) for each in differences}:
            word = f"{_FIELD}{kind}:{name}"
            if word not in words:
                known += 1
                if known > MAX_FIELDS:
                    word = f"{_FIELD}{kind}:{OTHER_FIELDS}"
            words[word] = words.get(word, 0) + 1

    # --- telling ------------------------------------------------------------------------------

    @property
    def bad(self) -> int:
        return sum(self.total(verdict) for verdict in (*BAD, Verdict.ERROR))

    def total(self, word: str) -> int:
        return sum(words.get(word, 0) for words in self.counts.values())

    def digest(self, collection: str, store: StoreName) -> str:
        """Hexadecimal. Equal for equal sets of documents, whatever their order."""
        words = self.counts.get(collection, {})
        lanes = (words.get(f"{_DIGEST}{store.value}:{n}", 0) for n in range(LANES))
        return "".join(f"{lane % 2**32:08x}" for lane in lanes)

    def rules_of(self, collection: str) -> dict[str, int]:
        return {word[len(_RULE) :]: n for word, n in self._words(collection, _RULE)}

    def fields_of(self, collection: str) -> list[tuple[str, str, int]]:
        """(field, kind of difference, documents), the most frequent first."""
        found = []
        for word, count in self._words(collection, _FIELD):
            kind, _, name = word[len(_FIELD) :].partition(":")
            found.append((unescape_path(name), kind, count))
        return sorted(found, key=lambda each: (-each[2], each[0], each[1]))

    def _words(self, collection: str, prefix: str) -> Iterator[tuple[str, int]]:
        for word, count in sorted(self.counts.get(collection, {}).items()):
            if word.startswith(prefix):
                yield word, count


_EQUAL = (
    *(StoreName.FIRESTORE.value, StoreName.POSTGRESQL.value),
    *(Verdict.MATCH.value, COMPARED),
)
_LANES = [
    [f"{_DIGEST}{store.value}:{number}" for number in range(LANES)]
    for store in (StoreName.FIRESTORE, StoreName.POSTGRESQL)
]


def _name(difference: Difference) -> str:
    hidden = redaction.present().key_of_map
    path = tuple(hidden(part) for part in difference.place if isinstance(part, str))
    return escape_path(format_field_path(path)) if path else "(the whole)"
