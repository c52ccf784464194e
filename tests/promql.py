"""What a PromQL expression mentions, told by its words: enough to see that it asks for
what there is. Whether it is PromQL at all is promtool's business.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

TEXT = r'"(?:[^"\\]|\\.)*"'
MATCHER = re.compile(rf"(\w+)\s*(=~|!~|!=|=)\s*({TEXT})")
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
TOKEN = re.compile(
    rf"(?P<matchers>\{{(?:[^{{}}\"]|{TEXT})*\}})"
    r"|(?P<range>\[[^\]]*\])"
    r"|(?P<number>\d[\w.]*)"
    r"|(?P<name>[a-zA-Z_:][\w:]*)"
    rf"|(?P<other>{TEXT}|\S)"
)
OPERATORS = frozenset({"and", "or", "unless", "offset", "bool"})


@dataclass(frozen=True, slots=True)
class Selector:
    """A series that is asked for, with its matchers: (label, operator, text)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def groupings(expression: str) -> set[str]:
    """Labels by which something is grouped or joined."""
    return {
        label
        for match in GROUPING.finditer(expression)
        for label in match[2].replace(",", " ").split()
    }


def selectors(expression: str) -> Iterator[Selector]:
    """In their order. A name before a bracket is a function and none."""
    found = [(str(m.lastgroup), m[0]) for m in TOKEN.finditer(GROUPING.sub(" ", expression))]
    for (kind, text), (next_kind, following) in pairwise([*found, ("end", "")]):
        if kind == "name" and text not in OPERATORS and following != "(":
            matchers = MATCHER.findall(following) if next_kind == "matchers" else []
            yield Selector(text, tuple((a, b, quoted[1:-1]) for a, b, quoted in matchers))
