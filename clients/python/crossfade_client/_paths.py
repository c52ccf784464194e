"""Field paths in Firestore's notation. No I/O."""

import re

from crossfade_client.errors import InvalidArgumentError
from crossfade_client.values import FieldPath

_SIMPLE = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_SEGMENT = re.compile(r"(?:`((?:[^`\\]|\\.)*)`|([^.`]+))(?:\.(?=.)|$)", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(path: FieldPath) -> tuple[str, ...]:
    """The names on the path. Raises InvalidArgumentError for a text that is none."""
    if not isinstance(path, str):
        return path
    names: list[str] = []
    position = 0
    while position < len(path) or not names:
        match = _SEGMENT.match(path, position)
        if match is None:
            raise InvalidArgumentError(f'field path "{path[:120]}": not a field path')
        quoted, plain = match.groups()
        names.append(_ESCAPE.sub(r"\1", quoted) if plain is None else plain)
        position = match.end()
    return tuple(names)


def spell(names: tuple[str, ...]) -> str:
    """The inverse of `parse`."""
    return ".".join(
        name
        if _SIMPLE.fullmatch(name)
        else "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
        for name in names
    )
