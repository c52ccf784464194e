"""The schema through the commands: made, compared, brought on, dropped; and what does not fit."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from crossfade.cli import main
from crossfade.document import Database, GeoPoint, identical
from crossfade.errors import FailedPrecondition
from crossfade.mapping import Mappings
from crossfade.starting import load_mappings
from crossfade.store import Intent
from crossfade.stores.postgres.check import refuse_strays
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.migrations.versions import crossfade_0001
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade.write import Write
from tests.integration.test_postgres_placement import Library
from tests.library.mapping import MAPPINGS
from tests.postgres_fixture import DATABASE, MakeLanes, with_database
from violet.mapping import MAPPINGS as VIOLET

PROJECT = Database("violet")


class Terminal:
    """Runs commands on one empty database."""

    def __init__(
        self, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.url = url
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.mapping("violet")
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("COLUMNS", "250")
        for name in ("DATABASE_TYPE", "MIGRATION_READ_PRIMARY", "MIGRATION_DUAL_WRITE"):
            monkeypatch.delenv(name, raising=False)

    def mapping(self, package: str) -> None:
        self._monkeypatch.setenv("CROSSFADE_MIGRATION__MAPPINGS", package)

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and everything that was printed."""
        self._capsys.readouterr()
        code = await asyncio.to_thread(main, arguments)
        captured = self._capsys.readouterr()
        return code, captured.out + captured.err

    async def execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(sql)
        await connection.close()


@pytest_asyncio.fixture
async def terminal(
    postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("drop database if exists schema_commands with (force)")
    await admin.execute("create database schema_commands")
    yield Terminal(with_database(postgres_url, "schema_commands"), capsys, monkeypatch)
    await admin.execute("drop database schema_commands with (force)")
    await admin.close()


# --- create, check, drop -----------------------------------------------------------------------


async def test_the_migrations_make_what_the_models_say(terminal: Terminal):
    code, output = await terminal.run("schema", "check")
    assert code == 1
    assert "missing: migration violet_0001" in output
    assert "missing: table violet.tasks" in output
    code, output = await terminal.run("schema", "create")
    assert (code, "crossfade_0008, violet_0001" in output) == (0, True)
    assert await terminal.run("schema", "check") == (
        0,
        "the database is as the models and the mapping say\n",
    )
    code, output = await terminal.run("schema", "create")
    assert (code, "the schema is there" in output) == (0, True)
    code, output = await terminal.run("schema", "upgrade")
    assert (code, "nothing was missing" in output) == (0, True)


async def test_what_a_sidecar_made_is_brought_under_migrations(terminal: Terminal):
    lanes = await Lanes.open(terminal.url, size=1)
    await create_schema(lanes, VIOLET)
    await lanes.close()
    code, output = await terminal.run("schema", "check")
    assert (code, output.count("\n")) == (1, 2)
    assert (await terminal.run("schema", "upgrade"))[0] == 0
    assert (await terminal.run("schema", "check"))[0] == 0


async def test_a_database_of_the_first_version_is_brought_on(terminal: Terminal):
    """By the migration, not by a sidecar's start: that one changes no table that is there."""
    lanes = await Lanes.open(terminal.url, size=1)
    for statement in crossfade_0001.STATEMENTS:
        await lanes.execute(statement, timeout=5)
    with pytest.raises(FailedPrecondition, match="run crossfade schema upgrade"):
        await create_schema(lanes, VIOLET)
    await lanes.close()
    await terminal.execute(
        """create table crossfade.alembic_version (version_num text primary key);
        insert into crossfade.alembic_version values ('crossfade_0001')"""
    )
    code, output = await terminal.run("schema", "upgrade")
    assert (code, "crossfade_0008" in output) == (0, True)
    assert (await terminal.run("schema", "check"))[0] == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("alter table violet.tasks drop column model_id", "missing: column violet.tasks.model_id"),
        ("alter table violet.tasks add column x text", "not in the models: column violet.tasks.x"),
        ("alter table violet.files alter size type text", "violet.files.size: type is TEXT"),
        ("drop table violet.validators", "missing: table violet.validators"),
        ("drop index violet.tasks_status", "missing: index tasks_status on violet.tasks"),
        ("drop index violet.tasks_status_id", "missing: index tasks_status_id on violet.tasks"),
        ("drop index violet.tasks_open_miners", "missing: index tasks_open_miners on violet.tas"),
        (
            """drop index violet.tasks_status_id;
            create index tasks_status_id on violet.tasks (id, status)""",
            "index tasks_status_id on violet.tasks",
        ),
        (
            """drop index violet.tasks_open_miners;
            create index tasks_open_miners on violet.tasks using gin (assigned_miners)""",
            "index tasks_open_miners on violet.tasks: it has all rows, not the rows with status in",
        ),
        (
            """drop index violet.tasks_open_miners;
            create index tasks_open_miners on violet.tasks using gin (assigned_miners)
            where status in ('pending', 'assigned')""",
            "index tasks_open_miners on violet.tasks: it has the rows with (status = ANY",
        ),
        (
            """drop index violet.tasks_open_miners;
            create index tasks_open_miners on violet.tasks (assigned_miners)
            where status in ('pending', 'assigned', 'in_progress', 'processing', 'distributed')""",
            "index tasks_open_miners on violet.tasks: it is btree, not gin",
        ),
        ("drop index violet.tasks_beside", "missing: index tasks_beside on violet.tasks"),
        ("drop index violet.users_email_waiting", "missing: index users_email_waiting"),
        ("alter table violet.users drop constraint users_email_key", "missing: unique"),
        ("alter table violet.voices drop constraint voices_file_id_fkey", "missing: reference"),
        ("alter table violet.users drop constraint users_role_check", "missing: check of the word"),
        (
            """alter table violet.users drop constraint users_role_check;
            alter table violet.users add check (role in ('client', 'miner', 'admin', 'it''s'))""",
            """check does not know the word 'validator'""",
        ),
        ("drop trigger crossfade_place on violet.users", "missing: trigger crossfade_place"),
        (
            "alter table violet.users disable trigger crossfade_place",
            "missing: trigger crossfade_place on violet.users",
        ),
        (
            """create or replace function violet.users_place() returns trigger language plpgsql
            as $$ begin return new; end $$""",
            "trigger crossfade_place on violet.users: it does something else",
        ),
        (
            """create or replace function crossfade.with_misfit(misfits text[], field text)
            returns text[] language sql immutable as 'select misfits'""",
            "function crossfade.with_misfit: it does something else",
        ),
        ("delete from crossfade.alembic_version", "missing: migration violet_0001"),
    ],
)
async def test_check_says_what_differs(terminal: Terminal, change: str, expected: str):
    await terminal.run("schema", "create")
    await terminal.execute(change)
    code, output = await terminal.run("schema", "check")
    assert code == 1
    assert expected in output


async def test_other_tables_are_left_alone(terminal: Terminal):
    await terminal.run("schema", "create")
    await terminal.execute("create table violet.theirs (x int); create schema other")
    assert (await terminal.run("schema", "check"))[0] == 0
    assert (await terminal.run("schema", "drop", "--yes"))[0] == 0
    await terminal.execute("select x from violet.theirs; drop table violet.theirs")
    code, output = await terminal.run("schema", "check")
    assert (code, "missing: table violet.tasks" in output) == (1, True)
    await terminal.run("schema", "create")
    assert (await terminal.run("schema", "check"))[0] == 0


async def test_drop_asks_twice(terminal: Terminal):
    await terminal.run("schema", "create")
    code, output = await terminal.run("schema", "drop")
    assert (code, "say --yes" in output) == (2, True)
    await terminal.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'live', 'postgresql', 1, 1)"""
    )
    code, output = await terminal.run("schema", "drop", "--yes")
    assert (code, "the stage is live" in output) == (2, True)
    assert (await terminal.run("schema", "drop", "--yes", "--force"))[0] == 0
    assert (await terminal.run("schema", "drop", "--yes"))[0] == 0


async def test_without_a_database_it_says_so(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATABASE_URL")
    code, output = await terminal.run("schema", "check")
    assert (code, "no PostgreSQL is configured" in output) == (2, True)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/d")
    code, output = await terminal.run("drift")
    assert (code, "secret" in output) == (2, False)


# --- a mapping that changes --------------------------------------------------------------------

NEW_MAPPING = """
from sqlalchemy import BigInteger, Column, MetaData
from crossfade.mapping import CollectionMapping, Mappings, document_table, text_column

metadata = MetaData(schema="changing")
things = document_table("things", metadata, text_column("name"){column})
parts = document_table("parts", metadata, text_column("name"))
MAPPINGS = Mappings([CollectionMapping("things", things), CollectionMapping("parts", parts)])
"""
NEW_MIGRATION = """
from alembic import op
revision = "changing_0001"
down_revision = None
branch_labels = ("changing",)
depends_on = None

def upgrade():
    op.execute("create schema if not exists changing")
    op.execute("alter table if exists changing.things add column if not exists size bigint")
"""


async def test_a_collection_gets_a_table_and_then_a_column(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    documents: dict[str, Any] = {
        "things/1": {"name": "a", "size": 1},
        "things/2": {"name": "b", "size": 2.0},
        "things/1/parts/1": {"name": "c"},
        "parts/1": {"name": "d"},
        "others/1": {"name": "e"},
    }
    lanes = await Lanes.open(terminal.url, size=2)
    await create_schema(lanes, Mappings())
    store = PostgresStore(lanes, Mappings(), PROJECT)
    await store.commit([Write(path, fields) for path, fields in documents.items()], timeout=10)
    before = await _contents(store, list(documents))

    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "changing_one"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mapping.py").write_text(NEW_MAPPING.format(column=""))
    terminal.mapping("changing_one")
    code, output = await terminal.run("schema", "check")
    assert (code, "2 documents of things are in the generic table" in output) == (1, True)
    first = load_mappings("changing_one")
    await create_schema(lanes, first)
    with pytest.raises(FailedPrecondition, match="documents of things are still in the generic"):
        await refuse_strays(lanes, first, timeout=5)
    # A sidecar of the new version wrote one of them meanwhile, and one of the old an older one.
    await PostgresStore(lanes, first, PROJECT).commit([Write("parts/1", {"name": "x"})], timeout=5)
    before[3] = (await _contents(PostgresStore(lanes, first, PROJECT), ["parts/1"]))[0]
    code, output = await terminal.run("schema", "upgrade")
    assert (code, "moved to their tables: 3" in output) == (0, True)
    await refuse_strays(lanes, first, timeout=5)
    assert await _contents(PostgresStore(lanes, first, PROJECT), list(documents)) == before
    assert await lanes.fetchval("select count(*) from crossfade.documents", timeout=5) == 2

    # The next version of the application has a column for `size`.
    package = tmp_path / "changing_two"
    (package / "migrations").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mapping.py").write_text(NEW_MAPPING.format(column=', Column("size", BigInteger)'))
    (package / "migrations" / "changing_0001.py").write_text(NEW_MIGRATION)
    terminal.mapping("changing_two")
    second = load_mappings("changing_two")
    with pytest.raises(FailedPrecondition, match=r"changing\.things\.size missing"):
        await create_schema(lanes, second)
    code, output = await terminal.run("schema", "upgrade")
    assert (code, "with values moved to columns: 1" in output) == (0, True)
    assert await _contents(PostgresStore(lanes, second, PROJECT), list(documents)) == before
    sizes = await lanes.fetch("select size from changing.things order by id", timeout=5)
    assert [row[0] for row in sizes] == [1, None]
    assert (await terminal.run("schema", "check"))[0] == 0
    await lanes.close()


NOTHING = """
from crossfade.mapping import Mappings
MAPPINGS = Mappings()
"""
DROPPING = """
from alembic import op
revision = "dropping_0001"
down_revision = None
branch_labels = ("dropping",)
depends_on = None

def upgrade():
    for name in ("cards", "visits", "notes", "loans", "readers"):
        op.execute(f"drop table if exists library.{name} cascade")
    for name in ("books_state", "books_reader", "books_sequel_of"):
        op.execute(f"drop index if exists library.{name}")
    op.execute("alter table library.books drop column rating")
    # Its trigger looks at it; upgrade makes the triggers anew.
    op.execute("alter table library.books drop column sequel_of cascade")
"""
A_TIME = datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)
LIBRARY: dict[str, Any] = {
    "readers/a": {"name": "n", "card": "1", "level": 1, "since": A_TIME, "visits": [{"day": 1}]},
    "readers/b": {"name": "m", "card": "1", "mail": None, "$odd": 1},  # a second holder
    "readers/__id7__": {"name": "x\0", "visits": [{"day": 1}, {"day": 1}]},
    "books/1": {"title": "t", "state": "burnt", "reader": "a", "rating": float("nan")},
    "books/2": {"title": 7, "reader": "nobody", "rating": -0.0, "rare": True, "sequel_of": "2"},
    "books/3": {"shelves": [1, 2], "pages": 2**63 - 1, "sequel_of": "2", "where": GeoPoint(1, 2)},
    "books/1/notes/1": {"text": "x", "by": "a"},
    "books/none/notes/1": {"text": "y", "by": "none"},
    "loans/1": {"book": "1", "reader": "a", "at": A_TIME},
    "cards/1": {"name": "n", "level": 1, "since": A_TIME, "more": [None]},  # held by its owner
    "cards/2": {"name": "n"},
    "visits/a_1": {"day": 1},
    "visits/b_1": {"day": 2},
    "others/1": {"x": 1},
}
LESS = """
from sqlalchemy import ARRAY, BigInteger, Boolean, Column, MetaData
from crossfade.mapping import CollectionMapping, Mappings, document_table, text_column
from crossfade.mapping import word_column
metadata = MetaData(schema="library")
books = document_table(
    "books", metadata, text_column("title"), text_column("reader"), Column("rare", Boolean),
    word_column("state", "shelved", "lent", "lost"), Column("pages", BigInteger),
    Column("shelves", ARRAY(BigInteger)),
)
MAPPINGS = Mappings([CollectionMapping("books", books)])
"""


@pytest.mark.parametrize("left", ["", LESS])
async def test_a_mapping_is_taken_away(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
):
    lanes = await Lanes.open(terminal.url, size=4)
    await create_schema(lanes, MAPPINGS)
    store = PostgresStore(lanes, MAPPINGS, PROJECT)
    for path, fields in LIBRARY.items():
        await store.commit([Write(path, fields)], timeout=5)
    before = await _contents(store, list(LIBRARY))
    assert len(before) == len(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / f"less_{len(left)}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mapping.py").write_text(left or NOTHING)
    terminal.mapping(package.name)
    less = load_mappings(package.name)
    # A sidecar with the new mapping that is started first makes what is missing, and stops.
    await create_schema(lanes, less)
    with pytest.raises(FailedPrecondition, match="from before the mapping changed"):
        await refuse_strays(lanes, less, timeout=5)
    code, output = await terminal.run("schema", "check")
    assert (code, "2 documents of cards are in library.cards, where" in output) == (1, True)
    if left:
        assert "2 documents of books have rating, sequel_of in columns of library.books" in output

    code, output = await terminal.run("schema", "upgrade")
    given_back = 13 if not left else 10 + 2
    assert (code, f"without a mapping: {given_back}" in output) == (0, True)
    await refuse_strays(lanes, less, timeout=5)
    store = PostgresStore(lanes, less, PROJECT)
    assert await _same(store, before)
    counts = [
        await lanes.fetchval(f"select count(*) from {name}", timeout=5)
        for name in ("library.books", "library.readers", "crossfade.documents")
    ]
    assert counts == ([3, 0, 11] if left else [0, 0, 14])
    # No constraint of a table that is empty now stands in the way of a write.
    await store.commit([Write("books/9", {"reader": "new"})], timeout=5)
    await store.commit([Write("books/9", None)], timeout=5)
    code, output = await terminal.run("schema", "check")
    assert "documents" not in output
    code, output = await terminal.run("schema", "upgrade")
    assert (code, "without a mapping" in output) == (0, False)

    # And back again, as if nothing had been.
    terminal.mapping("tests.library")
    assert (await terminal.run("schema", "upgrade"))[0] == 0
    store = PostgresStore(lanes, MAPPINGS, PROJECT)
    assert await _same(store, before)
    assert await lanes.fetchval("select owner from library.cards where id = '1'", timeout=5) == "a"
    await lanes.close()


async def test_a_migration_may_drop_what_the_mapping_no_longer_has(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lanes = await Lanes.open(terminal.url, size=4)
    await create_schema(lanes, MAPPINGS)
    store = PostgresStore(lanes, MAPPINGS, PROJECT)
    await store.commit([Write(path, fields) for path, fields in LIBRARY.items()], timeout=5)
    before = await _contents(store, list(LIBRARY))
    await lanes.close()
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "dropping"
    (package / "migrations").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mapping.py").write_text(LESS)
    (package / "migrations" / "dropping_0001.py").write_text(DROPPING)
    terminal.mapping("dropping")
    for _ in range(2):
        code, output = await terminal.run("schema", "upgrade")
        assert code == 0
    code, output = await terminal.run("schema", "check")
    assert (code, output) == (0, "the database is as the models and the mapping say\n")
    lanes = await Lanes.open(terminal.url, size=2)
    store = PostgresStore(lanes, load_mappings("dropping"), PROJECT)
    assert await _same(store, before)
    await lanes.close()


async def test_a_table_of_which_nothing_is_noted(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    terminal.mapping("tests.library")
    await terminal.run("schema", "create")
    await terminal.execute(
        """delete from crossfade.applied where name like 'mapping of%';
        insert into library.readers (id, create_time, update_time, epoch) values ('1', 1, 1, 1)"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "nothing"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mapping.py").write_text(NOTHING)
    terminal.mapping("nothing")
    await terminal.run("schema", "upgrade")
    code, output = await terminal.run("schema", "check")
    assert (code, "documents are in library.readers, which has no mapping" in output) == (1, True)
    terminal.mapping("tests.library")
    await terminal.run("schema", "upgrade")
    terminal.mapping("nothing")
    code, output = await terminal.run("schema", "upgrade")
    assert (code, "without a mapping: 1" in output) == (0, True)
    assert (await terminal.run("schema", "check"))[0] == 0


async def _same(store: PostgresStore, before: list[Any]) -> bool:
    after = await _contents(store, list(LIBRARY))
    return len(after) == len(before) and all(
        identical(one.fields, other.fields)
        and (one.create_time, version) == (other.create_time, other_version)
        for (one, version), (other, other_version) in zip(before, after, strict=True)
    )


async def _contents(store: PostgresStore, paths: list[str]) -> list[Any]:
    found = (await store.get(paths, timeout=5)).documents
    return [
        (parse_document(stored.data, PROJECT), stored.version) for stored in found if stored.data
    ]


# --- drift, finalize, enforce ------------------------------------------------------------------


async def _drifted(terminal: Terminal) -> Lanes:
    lanes = await Lanes.open(terminal.url, size=4)
    await create_schema(lanes, MAPPINGS)
    terminal.mapping("tests.library")
    library = Library(lanes)
    await library.put(
        books__1={"state": "burnt", "title": "t", "weight": 1.5, "$odd": 1},
        books__2={"state": "burnt", "title": None, "pages": 7.0, "weight": 2},
        books__3={"state": "shelved", "pages": 1, "rating": float("nan"), "weight": 2.5},
        books__3__notes__1={"by": "nobody"},
        loans__1={"book": "none"},
        readers__a={"card": "1"},
        readers__b={"card": "1"},
        cards__1={"name": "n"},
        strays__1={"x": 1},
    )
    return lanes


async def test_drift_by_field_and_cause(terminal: Terminal):
    lanes = await _drifted(terminal)
    code, output = await terminal.run("drift")
    assert code == 0
    lines = {tuple(line.split()[:2]): " ".join(line.split()[2:]) for line in output.splitlines()}
    assert lines["books", "state"].startswith("3 1 2 word books/1 add the words")
    assert lines["books", "title"].startswith("2 1 1 null books/2 none needed")
    assert lines["books", "pages"].startswith("2 1 1 type books/2 if the writers mean it")
    assert lines["books", "rating"].startswith("1 0 1 range books/3")
    assert lines["books", "weight"] == (
        '3 0 3 no column books/1 Column("weight", Double) (fits 2 of 3)'
    )
    assert lines["books/*/notes", "by"].startswith("1 0 1 reference books/3/notes/1 bring")
    assert lines["readers", "card"].startswith("2 1 1 duplicate readers/b")
    assert lines["cards", "name"].startswith("1 0 1 owner cards/1")
    assert lines["strays", "*"].startswith("1 0 1 no column strays/1 map the collection")
    assert "burnt" not in output
    assert ("books", "shelves") not in lines
    assert '"burnt" (2)' in (await terminal.run("drift", "--words"))[1]
    assert "reader" in (await terminal.run("drift", "--all"))[1]
    await lanes.close()


async def test_finalize_lists_what_was_refused(terminal: Terminal):
    lanes = await _drifted(terminal)
    code, output = await terminal.run("schema", "finalize")
    assert code == 1
    assert "books.state: 2 by word, e.g. books/1" in output
    assert "readers.card: 1 by duplicate, e.g. readers/b" in output
    assert "weight" not in output
    assert "title" not in output
    library = Library(lanes)
    await library.put(books__1=None, books__2=None, books__3=None, books__3__notes__1=None)
    await library.put(loans__1=None, readers__b=None)
    code, output = await terminal.run("schema", "finalize")
    assert (code, "every value is in its column" in output) == (0, True)
    await lanes.close()


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("books/1", {"state": "burnt"}, 'field state: a word that the enum.*"word"'),
        ("books/1", {"pages": "7"}, "field pages: a value of another type"),
        ("loans/1", {"book": "none"}, "field book: a reference to a document"),
        ("readers/b", {"card": "1"}, "field card: a unique value that another"),
        ("books/1", {"title": "a\0"}, "field title: a value that a column"),
        ("books/a/notes/1", {"by": "none"}, "field by: a reference"),
    ],
)
async def test_enforced_constraints_refuse(
    postgres_lanes: MakeLanes, path: str, fields: Any, message: str
):
    lanes = await postgres_lanes()
    await create_schema(lanes, MAPPINGS)
    store = PostgresStore(lanes, MAPPINGS, DATABASE, enforce=True)
    await store.commit([Write("readers/a", {"card": "1"})], timeout=5)
    with pytest.raises(FailedPrecondition, match=message):
        await store.commit([Write("books/9", {}), Write(path, fields)], timeout=5)
    found = (await store.get([path, "books/9"], timeout=5)).documents
    assert [stored.data for stored in found] == [None, None]


async def test_enforced_constraints_let_pass_what_fits(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    await create_schema(lanes, MAPPINGS)
    store = PostgresStore(lanes, MAPPINGS, DATABASE, enforce=True)
    writes = [
        # The parent comes after its child, the holders change places.
        Write("loans/1", {"book": "1", "at": None, "more": 1}),
        Write("books/1", {"state": "lent"}),
        Write("cards/dangling", {"name": "n"}),
        Write("readers/a", {"card": "1"}),
        Write("readers/b", {"card": "2"}),
    ]
    await store.commit(writes, timeout=5)
    swap = [Write("readers/a", {"card": "2"}), Write("readers/b", {"card": "1"})]
    await store.commit(swap, timeout=5)
    # Firestore follows: what it would take cannot be refused.
    await lanes.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'live', 'postgresql', 1, 1)""",
        timeout=5,
    )
    mirrored = Intent("i", 1, mirrored=True)
    await store.commit([Write("books/2", {"state": "burnt"})], timeout=5, intent=mirrored)
