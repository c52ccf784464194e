"""Which rows are a group's: by the collection id of their path, as the database holds it."""

from crossfade.groups import DEFAULT, Group
from crossfade.mapping import escape_path

OF_PATH = r"regexp_replace(regexp_replace(path, '/[^/]*$', ''), '^.*/', '')"
"""The collection id of a document's path."""


def of_group(column: str, number: int) -> str:
    """A condition on a collection id, with the parameters `number` and the next one."""
    return f"({column} = any(${number}::text[])) = ${number + 1}::bool"


def listed(group: Group) -> tuple[list[str], bool]:
    """Those parameters."""
    return [escape_path(name) for name in group.collections], group.named


def everything(group: str) -> str:
    """The path that stands for everything that no group names, as only `default` meets it;
    `group` is SQL for a group's name."""
    return f"case when {group} = '{DEFAULT}' then '' end"


def wildcards(group: Group) -> list[str]:
    """`Group.wildcards` as the database holds them."""
    return [escape_path(name) for name in group.wildcards]
