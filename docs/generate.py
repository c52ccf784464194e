"""Writes the table of instruments into telemetry.md; `--check` says whether it is current."""

import sys
from pathlib import Path

from crossfade import prometheus
from crossfade.telemetry import INSTRUMENTS, Instrument

TARGET = Path(__file__).with_name("telemetry.md")
BEGIN = "<!-- generated from service/crossfade/telemetry.py by `make docs` -->"
END = "<!-- end of what is generated -->"
HEADINGS = ("instrument", "kind", "unit", "labels", "description", "in Prometheus")


def table() -> str:
    """A line for each instrument, in the order of the file that declares them."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_row, INSTRUMENTS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(item: Instrument) -> tuple[str, ...]:
    return (
        f"`{item.name}`",
        item.kind,
        f"`{item.unit}`",
        " ".join(f"`{name}`" for name in item.labels),
        item.description.replace("|", r"\|"),
        f"`{prometheus.family(item.name, item.unit, item.kind)}`",
    )


def with_table(text: str) -> str:
    """The page with today's table between the two marks. Raises ValueError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{TARGET.name} has lost the marks of its table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    text = TARGET.read_text()
    fresh = with_table(text)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            print(f"the table of docs/{TARGET.name} is not current, run `make docs`")
        return int(fresh != text)
    TARGET.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
