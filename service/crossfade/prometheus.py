"""What Prometheus calls the instruments. No I/O.

Between OTLP and Prometheus names change: dots become underscores, the unit and what kind it
is are appended. These are the rules of the collector's exporter, and alerts and dashboards
that were written by another set of them would show nothing and say nothing.
"""

import re
from collections.abc import Iterable

UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "%": "percent", "1": ""}
"""Units by their words. Those in braces only say what is counted, and leave no trace."""


def family(name: str, unit: str, kind: str) -> str:
    """The name of an instrument ("counter", "gauge" or "histogram"), to which histograms
    append once more (see `series`). Raises ValueError for a unit that has no word here."""
    parts = [part for part in re.split(r"[^A-Za-z0-9:]+", name) if part]
    word = "" if unit.startswith("{") else UNITS.get(unit)
    if word is None:
        raise ValueError(f"{name}: Prometheus's word for the unit {unit} is not known")
    if word and word not in parts:
        parts.append(word)
    if kind == "counter":
        parts = [*(part for part in parts if part != "total"), "total"]
    elif kind == "gauge" and unit == "1":
        parts = [*(part for part in parts if part != "ratio"), "ratio"]
    joined = "_".join(parts)
    return f"_{joined}" if joined[:1].isdecimal() else joined


def series(name: str, unit: str, kind: str) -> tuple[str, ...]:
    """The names under which samples of an instrument are found."""
    found = family(name, unit, kind)
    if kind != "histogram":
        return (found,)
    return tuple(f"{found}_{part}" for part in ("bucket", "count", "sum"))


def label(attribute: str) -> str:
    """The name of an attribute."""
    found = re.sub(r"[^A-Za-z0-9_]", "_", attribute)
    return f"key_{found}" if found[:1].isdecimal() else found


def labels(attributes: Iterable[str]) -> tuple[str, ...]:
    return tuple(label(attribute) for attribute in attributes)
