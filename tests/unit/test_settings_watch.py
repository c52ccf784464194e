"""The settings file while the sidecar runs: applied as a whole, or not at all."""

import os
from pathlib import Path

import pytest

from crossfade.jobs.settings_watch import Changed, SettingsWatch
from crossfade.loading import load
from crossfade.settings import Settings

GOOD = "[migration]\nread_percent = 5\n[collections.tasks]\nshadow_rate = 0.5\n"


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    for name in os.environ:
        if name.startswith(("DATABASE_", "MIGRATION_", "FIRESTORE_", "CROSSFADE_")):
            monkeypatch.delenv(name)
    return tmp_path / "crossfade.toml"


class Watched:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.applied: list[Settings] = []
        self.told: list[Changed] = []
        self.watch = SettingsWatch(file, lambda: load(file), self._apply, load(file), self._tell)

    async def _apply(self, settings: Settings) -> None:
        self.applied.append(settings)

    async def _tell(self, changed) -> None:
        self.told += changed

    async def write(self, text: str) -> None:
        # As an editor does, or a config map: another file takes the place of the first.
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)
        await self.watch.look()


async def test_a_change_is_applied_once(file):
    file.write_text("")
    watched = Watched(file)
    await watched.watch.look()
    assert watched.applied == []
    await watched.write(GOOD)
    await watched.watch.look()
    (settings,) = watched.applied
    assert settings.migration.read_percent == 5
    assert settings.collections["tasks"].shadow_rate == 0.5
    assert watched.watch.current.collections == settings.collections


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[migration]\nread_percent = 101\n[collections.tasks]\nread_percent = 1", "read_percent"),
        (GOOD + "[collections.users]\nread_procent = 1", "did you mean"),
        ("[migration", "is not TOML"),
        ("[migrations]", "is not a section"),
    ],
)
async def test_a_file_that_cannot_be_used_changes_nothing_and_says_why(file, text, words):
    file.write_text(GOOD)
    watched = Watched(file)
    await watched.write(text)
    assert watched.applied == []
    assert words in watched.watch.problem
    assert watched.watch.current == load_text(file, GOOD)
    await watched.write(GOOD.replace("5", "6"))
    assert watched.watch.problem == ""
    assert [each.migration.read_percent for each in watched.applied] == [6]


def load_text(file: Path, text: str) -> Settings:
    other = file.with_name("other.toml")
    other.write_text(text)
    return load(other)


async def test_a_file_that_is_gone_is_a_problem_and_no_empty_file(file):
    file.write_text(GOOD)
    watched = Watched(file)
    file.unlink()
    await watched.watch.look()
    assert "there is no file" in watched.watch.problem
    assert watched.applied == []
    await watched.write(GOOD)
    assert watched.watch.problem == ""


async def test_what_takes_a_restart_is_not_applied(file):
    file.write_text(GOOD)
    watched = Watched(file)
    await watched.write(GOOD + "salt = 'x'\n[server]\nport = 1\n[shadow]\nqueue = 7")
    current = watched.watch.current
    assert (current.server.port, current.shadow.queue) == (7600, 1000)
    assert current.collections["tasks"].salt == "x"
    assert len(watched.applied) == 1


async def test_what_a_file_changes_is_told_collection_by_collection(file):
    file.write_text(GOOD)
    watched = Watched(file)
    await watched.write(GOOD.replace("= 5", "= 7") + "[collections.users]\nsalt = 'a'\n")
    assert watched.told == [
        Changed("", '{"read_percent": 5.0, "shadow_rate": 0.01}', watched.told[0].after),
        Changed("users", "the defaults", '{"salt": "a"}'),
    ]
    assert '"read_percent": 7.0' in watched.told[0].after
    watched.told.clear()
    await watched.write("[migration]\nread_percent = 7\n[collections.users]\nsalt = 'a'\n")
    assert [(each.collection, each.after) for each in watched.told] == [("tasks", "the defaults")]
    watched.told.clear()
    await watched.write("[migration")
    await watched.write(
        "[migration]\nread_percent = 7\n[collections.users]\nsalt = 'a'\n[log]\nlevel = 'error'"
    )
    assert watched.told == []
