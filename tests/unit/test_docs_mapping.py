"""The examples of docs/mapping.md work."""

import re
from pathlib import Path
from typing import Any

from crossfade import mapping as api
from crossfade.mapping import CollectionMapping, Mappings

PAGE = (Path(__file__).parents[2] / "docs" / "mapping.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_as_one_program():
    mapping, nested, derived, migration = BLOCKS
    scope: dict[str, Any] = {name: getattr(api, name) for name in api.__all__}
    exec(mapping, scope)
    assert isinstance(scope["MAPPINGS"], Mappings)
    exec(nested, scope)
    scope["_readers"] = CollectionMapping("readers", scope["readers"])
    exec(derived, scope)
    compile(migration, "migration", "exec")
    row = scope["MAPPINGS"].get("books").to_row({"title": "t", "state": "burnt"})
    assert row.misfits == ["state"]


def test_every_kind_of_column_and_every_command_is_there():
    for name in ("text_column", "word_column", "reference_column", "unique_column"):
        assert f"`{name}(" in PAGE
    for name in ("create", "upgrade", "check", "finalize", "drop"):
        assert f"crossfade schema {name}" in PAGE
