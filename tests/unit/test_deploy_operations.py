"""docs/operations.md and docs/telemetry.md say nothing that is not there: commands with
their options, make targets, settings, links.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import cyclopts
import pytest

from crossfade import cli, settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("operations.md", "telemetry.md")}
OPERATIONS = PAGES["operations.md"]


def code() -> Iterator[str]:
    """Every line of a block, every inline piece, without comments."""
    for page in PAGES.values():
        blocks = re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        for line in "".join(blocks).splitlines():
            yield line.partition(" #")[0].strip()
        without = re.sub(r"^```\n.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
        yield from re.findall(r"`([^`\n]+)`", without)


CODE = list(code())
COMMANDS = sorted(
    {
        text[match.start() :]
        for text in CODE
        if (match := re.search(r"(?:^|(?<= ))crossfade (?=[a-z])", text))
        and not text.startswith(("docker build", "kubectl create"))
    }
)
KEYS = sorted(set(re.findall(r"`\[(\w+)\] (\w+)", "\n".join(PAGES.values()))))


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_with_its_options(command):
    function, _, _ = cli.app.parse_args(
        shlex.split(command)[1:], exit_on_error=False, print_error=False
    )

    assert function is not cli.app.help_print


def test_the_settings_that_are_shown_are_settings():
    blocks = [dedent(block) for block in re.findall(r"```toml\n(.*?)```", OPERATIONS, re.DOTALL)]
    assert blocks
    for block in blocks:
        settings.Settings.model_validate(tomllib.loads(block))


@pytest.mark.parametrize("wrong", ["crossfade stages", "crossfade traffic set tasks --percents 5"])
def test_a_command_that_is_none_is_noticed(wrong):
    with pytest.raises(cyclopts.CycloptsError):
        cli.app.parse_args(shlex.split(wrong)[1:], exit_on_error=False, print_error=False)


def test_many_commands_are_looked_at():
    assert len(COMMANDS) > 20
    assert {"crossfade dead-letters retry --all", "crossfade stage"} <= set(COMMANDS)
    assert len(KEYS) > 10


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {text.split()[1] for text in CODE if re.fullmatch(r"make [a-z-]+", text)}

    assert named
    assert named <= targets


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_setting_is_one(section, key):
    annotation = settings.Settings.model_fields[section].annotation

    assert key in annotation.model_fields


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", PAGES[name])
    for link in links:
        file, _, anchor = link.partition("#")
        text = (ROOT / "docs" / file).read_text() if file else PAGES[name]
        headings = {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        assert not anchor or anchor in headings, link


def test_files_are_there():
    named = {
        text for text in CODE if re.fullmatch(r"(?:deploy|docs|service|tests|proto)/[\w./-]+", text)
    }

    assert len(named) >= 4
    for path in named:
        assert (ROOT / path).exists(), path
