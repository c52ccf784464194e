"""Document ids that are secrets themselves, and what is told instead of them. Pure.

Where an application keeps an index by API key or by email, the id of a document is what
nobody else may read. Answers hold such ids, for who asks has them; error texts, log lines,
samples of mismatches and lists of dead letters hold "api_keys/#" and a keyed hash.

What is to be hidden is one thing for the whole process, as its log is: `install` adds to it.
"""

import re
import secrets
from collections.abc import Iterable
from hashlib import blake2b

MARK = "#"
"""What a hash begins with."""
DIGITS = 16
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


class Redaction:
    """`collections`: by id, wherever they lie. Under the same `key` (at most 64 bytes) equal
    ids have equal hashes."""

    def __init__(self, collections: Iterable[str] = (), key: bytes = b"") -> None:
        self.collections = frozenset(collections)
        self.key = key
        names = "|".join(map(re.escape, sorted(self.collections)))
        # In a sentence an id ends before a blank, or before what closes a quotation. A sign that
        # ends a clause is not taken to be part of it.
        self._named = (
            re.compile(
                rf"(?<![\w-])({names})/(?!{MARK})([^\s/\"`,;()\[\]]+?)"
                r"(?=[:.'…]*(?:[\s/\"`,;()\[\]]|$))"
            )
            if names
            else None
        )

    def path(self, path: str) -> str:
        """A document's or collection's path, relative to the database."""
        if not self.collections:
            return path
        parts = path.split("/")
        for at in range(1, len(parts), 2):
            if parts[at - 1] in self.collections and not _is_hidden(parts[at]):
                parts[at] = self._hash(parts[at])
        return "/".join(parts)

    def text(self, text: str) -> str:
        """A sentence in which paths may be."""
        if self._named is None or "/" not in text:
            return text
        return self._named.sub(lambda found: f"{found[1]}/{self._hash(found[2])}", text)

    def hides(self, path: str) -> bool:
        """Whether it is a path with a hash in it."""
        return any(_is_hidden(part) for part in path.split("/")[1::2])

    def key_of_map(self, name: str) -> str:
        """A map's key in the name of a place: the email or the id by which an application keeps
        something is no name of a field."""
        return name if _FIELD.fullmatch(name) else self._hash(name)

    def _hash(self, identity: str) -> str:
        digest = blake2b(identity.encode(), digest_size=DIGITS // 2, key=self.key)
        return MARK + digest.hexdigest()


def _is_hidden(part: str) -> bool:
    return re.fullmatch(rf"{MARK}[0-9a-f]{{{DIGITS}}}", part) is not None


_present = Redaction(key=secrets.token_bytes(32))


def present() -> Redaction:
    """What is in force."""
    return _present


def install(collections: Iterable[str], key: bytes | None = None) -> None:
    """Hides the ids of these collections too. `key` None: one of this process."""
    global _present  # noqa: PLW0603 - as a log's configuration is
    _present = Redaction(_present.collections | set(collections), key or _present.key)
