"""How the documents of one table are read and written: its statements and conversions.

Every table of documents is read in one layout: key, the mapping's columns, the rest
as tagged JSON (`remainder`, or all `fields` in the generic table), create_time,
update_time, epoch. Texts of statements are composed once; the driver keeps them prepared.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import dialect

from crossfade.document import Database, Document, Fields, collection_id, collection_path
from crossfade.mapping import (
    CollectionMapping,
    DerivedMapping,
    Mappings,
    Row,
    Watch,
    escape_path,
    from_json,
    pattern_of,
    to_json,
    unescape_path,
)
from crossfade.query import Query
from crossfade.store import Stored, Version
from crossfade.stores.postgres import tables
from crossfade.stores.postgres.bulk import Bulk
from crossfade.stores.postgres.decoder import make_decoder
from crossfade.stores.postgres.derivation import derived_source
from crossfade.stores.postgres.encoder import make_encoder, tagged_fields
from crossfade.stores.postgres.membership import everything
from crossfade.wire import decode_fields
from crossfade_api.v1 import document_pb2 as pb

_preparer = dialect().identifier_preparer  # type: ignore[no-untyped-call]

NOW = "(extract(epoch from statement_timestamp()) * 1000000)::int8"
"""Microseconds since 1970."""

# A direct put needs a newer version, a recopy an equal one too (else a wrong document
# could never be healed). A document beats a tombstone of its version, never the
# other way round.
GUARD = """on conflict (path) do update set epoch = excluded.epoch, time = excluded.time,
    live = excluded.live, peer_time = excluded.peer_time, peer_epoch = excluded.peer_epoch,
    peer_version = excluded.peer_version, seen = coalesce(excluded.seen, v.seen)
where (v.epoch, v.time) < (excluded.epoch, excluded.time)
   or (v.epoch, v.time) = (excluded.epoch, excluded.time)
      and (excluded.live and not v.live or {equal} and excluded.live = v.live)"""


@dataclass(frozen=True, slots=True)
class Extras:
    """Where the columns stand that a read by path adds to a table's own."""

    version_epoch: int
    version_time: int
    peer_time: int
    peer_epoch: int
    peer_version: int
    epoch: int
    generation: int
    pending: int
    now: int


_EXTRAS = f"""v.epoch, v.time, v.peer_time, v.peer_epoch, v.peer_version, c.epoch, c.generation,
    exists (select from crossfade.pending p
        where p.path = any(array[{{0}}, {{1}}, {everything("$4")}])), {NOW}"""


class DocumentTable:
    """One table of documents: of a mapping, or (None) the generic one."""

    def __init__(
        self, mapping: CollectionMapping | None, database: Database, watch: Watch | None = None
    ) -> None:
        self.mapping = mapping
        self._watch = watch
        table: Table = tables.documents if mapping is None else mapping.table
        self.name = _preparer.format_table(table)
        derived = isinstance(mapping, DerivedMapping)
        # What is read: of a derived collection, the content that its owners hold.
        self.source = derived_source(mapping) if isinstance(mapping, DerivedMapping) else self.name
        self.key = "path" if mapping is None else "id"

        def by_key(key: str) -> str:
            if isinstance(mapping, DerivedMapping):
                return f"left join lateral {derived_source(mapping, key)} t on true"
            return f"left join {self.source} t on t.{self.key} = {key}"

        self.collection = None if mapping is None else mapping.collection_id
        self.nested = mapping is not None and mapping.parent is not None
        # What stands before and between the parts of a key in a path.
        self._before, self._between = f"{self.collection}/", ""
        if mapping is not None and mapping.parent is not None:
            self._before = f"{mapping.parent.collection_id}/"
            self._between = f"/{self.collection}/"
        self.rest = "fields" if mapping is None else "remainder"
        columns = [] if mapping is None else [quoted(entry.column) for entry in mapping.columns]
        read = [self.key, *columns, self.rest, "create_time", "update_time", "epoch"]
        self.select = ", ".join(f"t.{name}" for name in read)
        self.rest_index = len(columns) + 1
        self.update_index = self.rest_index + 2
        self.epoch_index = self.rest_index + 3
        self.extras = Extras(*range(len(read), len(read) + 9))
        self.versions = slice(self.extras.version_epoch, self.extras.epoch)
        self.state = slice(self.extras.epoch, self.extras.now + 1)
        self.decode = make_decoder(mapping)
        self._encode = None if mapping is None else make_encoder(mapping)
        self._prefix = f"{database.root}/"

        self._stored = () if mapping is None or derived else mapping.columns
        kinds = ["text", *(entry.codec.sql for entry in self._stored)]
        own = ["collection_path", "collection_id"] if mapping is None else ["misfits"]
        kinds += ["jsonb", *(["text", "text"] if mapping is None else ["text[]"])]
        written = [self.key, *(quoted(entry.column) for entry in self._stored), self.rest, *own]
        self.width = len(written)
        self._values = ", ".join(f"${n}::{kind}" for n, kind in enumerate(kinds, start=1))
        self._written = ", ".join([*written, "create_time", "update_time", "epoch"])
        create, update, epoch = (f"${self.width + n}::int8" for n in (1, 2, 3))
        self._times = f"coalesce({create}, {update}), {update}, {epoch}"
        # An owner and a parent are nobody's to give: the triggers look them up.
        looked_up = ["owner"] if derived else ["parent"] if self.nested else []
        changed = [*written[1:], "update_time", "epoch", *looked_up]
        self.bulk = Bulk(self.name, list(zip(written, kinds, strict=True)), changed)
        self._update = ", ".join(
            [f"{name} = excluded.{name}" for name in changed]
            + [f"create_time = coalesce({create}, t.create_time)"]
        )
        # From the control row, which costs PostgreSQL less than from nothing. Without one there
        # is no row; `get_many` has one all the same.
        self.get_one = f"""select {self.select}, {_EXTRAS.format("$2::text", "$3::text")}
            from crossfade.control c
            {by_key("$1::text")}
            left join crossfade.versions v on v.path = $2::text
            where c.grp = $4"""
        self.get_many = f"""select {self.select}, {_EXTRAS.format("k.path", "k.collection_id")}
            from unnest($1::text[], $2::text[], $3::text[]) with ordinality
                k (key, path, collection_id, n)
            {by_key("k.key")}
            left join crossfade.versions v on v.path = k.path
            left join crossfade.control c on c.grp = $4
            order by k.n"""
        self.upsert = f"""insert into {self.name} as t ({self._written})
            values ({self._values}, {self._times})
            on conflict ({self.key}) do update set {self._update}"""
        self.held_back = f"""select id, remainder from {self.name}
            where id = any($1::text[]) and misfits is not null"""
        self.delete = f"delete from {self.name} where {self.key} = any($1::text[])"
        self.put_one = {owner: self._put_one(owner) for owner in (None, "intent", "claim")}

    def _put_one(self, owner: str | None) -> str:
        """Puts one full image in one statement; `owner` is the column of `pending` that
        ties it to a row, if any. Two booleans: the epoch still stands; it was put. With a
        commit_time, the intent is recorded as a request that was done.

        The upsert of the versions row is the lock that makes the guard true. A
        delete could not be done so: it would see the statement's old snapshot.
        """
        path, group, allow, row = (f"${self.width + n}" for n in (4, 5, 6, 7))
        time, epoch = f"${self.width + 2}::int8", f"${self.width + 3}::int8"
        own = where = ""
        if owner is not None:
            own = f"""own as (delete from crossfade.pending where {owner} = {row}::text
                and path = {path}::text and exists (select from c) returning 1),"""
            where = "where exists (select from own)"
        if owner == "intent":
            done, times = (f"${self.width + n}" for n in (8, 9))
            own += f"""request as (
                insert into crossfade.requests (intent, commit_time, update_times)
                select {row}, {done}::int8, {times}::int8[] from c where {done} is not null
                on conflict (intent) do nothing),"""
        return f"""with c as materialized (select 1 from crossfade.control where grp = {group}::text
                and epoch = {epoch} and authority <> 'postgresql' for share),
            {own}
            guard as (insert into crossfade.versions as v
                (path, epoch, time, live, peer_time, peer_epoch, peer_version)
                select {path}::text, {epoch}, {time}, true, {time}, {epoch}, {time} from c {where}
                {GUARD.format(equal=f"{allow}::bool")} returning 1),
            put as (insert into {self.name} as t ({self._written})
                select {self._values}, {self._times} from guard
                on conflict ({self.key}) do update set {self._update})
            select exists (select from c), exists (select from guard)"""

    def deletions(self, keys: Sequence[str]) -> list[list[str]]:
        """What `delete` is called with, one after the other. A statement cannot delete a row
        that it has just taken a reference from, as it does in a table that refers to itself."""
        mapping = self.mapping
        if mapping is not None and any(r.target is mapping.table for r in mapping.references):
            return [[key] for key in keys]
        return [list(keys)]

    # --- conversions --------------------------------------------------------------------------

    def key_of(self, path: str) -> str:
        """The key of a document's row."""
        text = escape_path(path)
        if self.mapping is None:
            return text
        if not self.nested:
            return text.partition("/")[2]
        _, parent, _, name = text.split("/")
        return f"{parent}/{name}"

    def path_of(self, row: Any) -> str:
        """The path of the document in a row."""
        text = unescape_path(row[0])
        if self.mapping is None:
            return text
        return self._before + (text.replace("/", self._between) if self.nested else text)

    def key_here(self, text: str) -> str | None:
        """The key of a document by its escaped path; None where it is not in this table."""
        if self.mapping is None:
            return text
        if not text.startswith(self._before):
            return None
        key = text.removeprefix(self._before)
        if not self.nested:
            return None if "/" in key else key
        parent, between, name = key.partition(self._between)
        return f"{parent}/{name}" if between and "/" not in parent + name else None

    def lies_below(self, root: str, rest: str) -> bool:
        """Whether documents of a mapped table may lie below a document (none: the root)."""
        if not root:
            return True
        return self.nested and self._before == f"{root}/" and "/" not in rest

    @property
    def segments(self) -> str:
        """The segments of a row's path as an array, which sorts as names do."""
        if self.mapping is None:
            return "string_to_array(t.path, '/')"
        path = f"replace(t.id, '/', {literal(self._between)})" if self.nested else "t.id"
        return f"string_to_array({literal(self._before)} || {path}, '/')"

    def values(self, path: str, fields: Fields) -> list[Any]:
        """The first parameters of a write; create_time (or None), update_time, epoch follow."""
        if self.mapping is None:
            return self._generic(path, to_json(fields))
        row = self.mapping.to_row(fields)
        if row.misfits is not None:
            self._tell(row, lambda: fields)
        return self._mapped(path, row)

    def values_sent(self, path: str, message: Any) -> list[Any]:
        """The same of a Document message as it came, which no values are made of."""
        if self._encode is None:
            return self._generic(path, tagged_fields(message.fields))
        row = self._encode(message.fields)
        if row.misfits is not None:
            self._tell(row, lambda: decode_fields(message.fields))
        return self._mapped(path, row)

    def _generic(self, path: str, fields: Any) -> list[Any]:
        key = self.key_of(path)
        parent = collection_path(key)
        return [key, fields, parent, parent.rpartition("/")[2]]

    def _mapped(self, path: str, row: Row) -> list[Any]:
        values = row.values if self._stored else ()
        return [self.key_of(path), *values, row.remainder, row.misfits]

    def _tell(self, row: Row, fields: Callable[[], Fields]) -> None:
        """Whoever watches is told of what does not fit its column. A derived document has no
        columns of its own that could have taken anything."""
        if self.mapping is not None and self._watch is not None and self._stored:
            for name, cause in self.mapping.misfit_causes(row, fields()):
                self._watch(self.mapping.collection_id, name, cause)

    def count(self, rows: Sequence[Sequence[Any]], tally: "Counter[tuple[str, str]]") -> None:
        """Adds to a tally how many rows, which begin with `values`, have something beside their
        columns, and how many something that a column refused. By collection id."""
        if self.mapping is None:
            for row in rows:
                tally[unescape_path(row[3]), "unmapped"] += 1
            return
        rest, name = self.width - 2, self.mapping.collection_id
        tally[name, "beside"] += sum(row[rest] is not None for row in rows)
        if self._stored:
            tally[name, "misfits"] += sum(row[rest + 1] is not None for row in rows)

    def fields(self, row: Any) -> Fields:
        rest = row[self.rest_index]
        if self.mapping is None:
            return from_rest(rest)
        return self.mapping.to_fields(row[1 : self.rest_index], rest)

    def document(self, row: Any) -> Document:
        index = self.update_index
        return Document(self.path_of(row), self.fields(row), row[index - 1], row[index])

    def document_bytes(self, row: Any, path: str) -> bytes:
        """A serialised Document message."""
        message = pb.Document()
        message.name = self._prefix + path
        self.decode(row, message)
        return message.SerializeToString()

    def stored(self, row: Any, path: str) -> Stored:
        """What a row of `get_one` or `get_many` says of its path."""
        epoch, time, peer_time, peer_epoch, peer_version = row[self.versions]
        if peer_time is not None and (peer_epoch, peer_version) != (epoch, time):
            peer_time = None
        if row[0] is None:
            return Stored(path, None, None if time is None else (epoch, time), peer_time)
        version = (row[self.epoch_index], row[self.update_index])
        return Stored(path, self.document_bytes(row, path), version, peer_time)

    def version(self, row: Any) -> Version | None:
        """The version of the document in a row of `get_one` or `get_many`, or of its tombstone."""
        epoch, time = row[self.versions][:2]
        if row[0] is not None:
            return row[self.epoch_index], row[self.update_index]
        return None if time is None else (epoch, time)

    def many(self, paths: Sequence[str], group: str) -> tuple[Any, ...]:
        """`get_many` with its arguments."""
        return (
            self.get_many,
            [self.key_of(path) for path in paths],
            [escape_path(path) for path in paths],
            [escape_path(collection_id(path)) for path in paths],
            group,
        )


def from_rest(rest: Any) -> Fields:
    """The fields of tagged JSON."""
    return from_json(rest)  # type: ignore[return-value]


def quoted(name: str) -> str:
    return _preparer.quote(name)


def literal(text: str) -> str:
    """A text of our own declarations in SQL."""
    return "'" + escape_path(text).replace("'", "''") + "'"


class DocumentTables:
    """Which table a document lives in."""

    def __init__(self, mappings: Mappings, database: Database) -> None:
        self.database = database
        self.generic = DocumentTable(None, database)
        self._mapped = {
            mapping.pattern: DocumentTable(mapping, database, mappings.watch)
            for mapping in mappings
        }
        self._nests = any(table.nested for table in self._mapped.values())
        self.all = (*self._mapped.values(), self.generic)

    def of_collection(self, path: str) -> DocumentTable:
        """The table of a collection path."""
        table = self._mapped.get(path)
        if table is None and self._nests and "/" in path:
            table = self._mapped.get(pattern_of(path))
        return table or self.generic

    def of(self, path: str) -> DocumentTable:
        """The table of a document path."""
        return self.of_collection(collection_path(path))

    def reached(self, query: Query) -> list[DocumentTable]:
        """The tables in which the query's documents may lie."""
        path = query.collection_path
        if path is not None:
            return [self.of_collection(path)]
        root, _, below = query.parent.partition("/")
        return [
            table
            for table in self.all
            if table.mapping is None
            or (query.collection in {None, table.collection} and table.lies_below(root, below))
        ]

    def grouped(self, paths: Sequence[str]) -> dict[DocumentTable, list[int]]:
        """The positions of the paths by table."""
        groups: dict[DocumentTable, list[int]] = {}
        for position, path in enumerate(paths):
            groups.setdefault(self.of(path), []).append(position)
        return groups
