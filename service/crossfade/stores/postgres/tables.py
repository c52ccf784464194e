"""Crossfade's own tables in PostgreSQL (schema `crossfade`) and the generic documents table.

All ids and paths collate "C": byte order is Firestore's order of names. Times
are microseconds since 1970 (bigint): exact, and cheap to compare.
"""

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "crossfade"
metadata = MetaData()


def name_column(name: str, **options: object) -> Column[str]:
    """A text column in byte order."""
    return Column(name, Text(collation="C"), **options)  # type: ignore[arg-type]


# One row per group of collections: who is in charge. Writers read it FOR SHARE, a
# change of authority updates it, so the two exclude each other.
control = Table(
    "control",
    metadata,
    Column("grp", Text, primary_key=True),
    Column("stage", Text, nullable=False),
    # firestore, postgresql, or none while a barrier is under way
    Column("authority", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    # Rises when everything that the mirror holds becomes doubtful (leaving dual_write).
    Column("generation", BigInteger, nullable=False),
    # The step of an unfinished change of stage, so that any sidecar can go on with it.
    Column("barrier", JSONB),
    # The stage that the settings asked for last: a request is carried out once.
    Column("requested", Text),
    # Not before this a copy may begin: what was written unmirrored has ended then everywhere.
    Column("copy_after", DateTime(timezone=True)),
    # All groups of the sidecars and their collections, the same in each row; "": one has all.
    Column("groups", Text, nullable=False, server_default=text("''")),
    # read percent and shadow rate by collection id; "" for the defaults
    Column("traffic", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    schema=SCHEMA,
)

# A path whose mirror copy may be behind, by intent. A wildcard row stands for a whole
# collection id (path = the id, which as a document path would be illegal) or, with
# path = '', for everything.
pending = Table(
    "pending",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("intent", Text, nullable=False),
    name_column("path", nullable=False),
    name_column("collection_path", nullable=False),
    name_column("collection_id", nullable=False),
    Column("epoch", BigInteger, nullable=False),
    # Who repairs the row now, until when. The writer itself holds the first lease.
    Column("claim", Text),
    Column("lease_until", DateTime(timezone=True), nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    # Why the last attempt failed. A row that failed too often is a dead letter:
    # kept, shown, retried by hand.
    Column("failure", Text),
    Column("dead", Boolean, nullable=False, server_default=text("false")),
    # The update_time of the document in Firestore that nobody here wrote (0: it was deleted
    # there), and whether an operator said that exactly this one may be overwritten.
    Column("foreign_time", BigInteger),
    Column("overwrite", Boolean, nullable=False, server_default=text("false")),
    Column("inserted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("pending_intent_path", "intent", "path", unique=True),
    Index("pending_path", "path"),
    Index("pending_collection_path", "collection_path"),
    Index("pending_collection_id", "collection_id"),
    Index("pending_claim", "claim"),
    schema=SCHEMA,
)

# The version of every path PostgreSQL ever held, live or deleted: the guard of every put,
# the tombstones, and the memory of the other store's update_time. One row per path is
# also the lock that makes the guard true (a guard over two tables is none).
versions = Table(
    "versions",
    metadata,
    name_column("path", primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("live", Boolean, nullable=False),
    # What Firestore holds: the update_time it answered last (0: absent there, null: not known)
    # and the version that this was the answer for. A pair, because the row may be newer already.
    Column("peer_time", BigInteger),
    Column("peer_epoch", BigInteger),
    Column("peer_version", BigInteger),
    # The last copy that met this path, so that its sweep finds what Firestore no longer has.
    Column("seen", BigInteger),
    schema=SCHEMA,
)
# Pruning looks for the tombstones among all versions.
Index("versions_tombstones", versions.c.path, postgresql_where=text("not live"))

# What was sent to Firestore on the way back, written before it is sent: by this any sidecar
# tells, after a crash or a takeover, its own commits from a foreign writer's.
attempts = Table(
    "attempts",
    metadata,
    # The intent of the Firestore commit, which revoking it makes impossible.
    Column("intent", Text, primary_key=True),
    name_column("path", primary_key=True),
    # Of the document's fields; null for a delete.
    Column("fingerprint", Text),
    # The version that was read for it; null where PostgreSQL never held the path.
    Column("epoch", BigInteger),
    Column("time", BigInteger),
    Column("inserted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("attempts_path", "path"),
    schema=SCHEMA,
)

# Copies under way. While one stands no tombstone is pruned: a page read before a delete
# would bring the document back. Whoever lets its lease run out puts no page any more.
pages = Table(
    "pages",
    metadata,
    Column("token", BigInteger, primary_key=True, autoincrement=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("lease_until", DateTime(timezone=True), nullable=False),
    schema=SCHEMA,
)

# What the shadow reads found to differ: a row for each collection and signature (which
# fields, how), with the first and the latest sample of it. Values are redacted.
mismatches = Table(
    "mismatches",
    metadata,
    name_column("collection_id", primary_key=True),
    Column("signature", Text, primary_key=True),
    Column("verdict", Text, nullable=False),
    Column("operation", Text, nullable=False),
    # Of the latest sample.
    name_column("path", nullable=False),
    Column("fields", ARRAY(Text), nullable=False),
    Column("first", JSONB, nullable=False),
    Column("latest", JSONB, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("latest_at", BigInteger, nullable=False),
    # A document of it was repaired so often in a row that it is not repaired any more.
    Column("given_up", Boolean, nullable=False),
    Index("mismatches_latest_at", "latest_at"),
    schema=SCHEMA,
)

# Who changed what of the migration, and what the checks said then. Never deleted.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("who", Text, nullable=False),
    # stage, traffic, ramp or guard
    Column("action", Text, nullable=False),
    # Empty: all of them, or the defaults.
    name_column("collection_id", nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    # A list with name, outcome and reason of each.
    Column("checks", JSONB, nullable=False),
    Column("reason", Text, nullable=False),
    schema=SCHEMA,
)

# How much of each day's budget of billed Firestore reads the sidecars have taken.
budget = Table(
    "budget",
    metadata,
    Column("day", Date, primary_key=True),
    Column("reserved", BigInteger, nullable=False),
    schema=SCHEMA,
)

# What every sidecar has counted since its start, by collection: a ramp judges the sum.
figures = Table(
    "figures",
    metadata,
    Column("sidecar", Text, primary_key=True),
    name_column("collection_id", primary_key=True),
    Column("tally", JSONB, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    schema=SCHEMA,
)

# The ramps, one for a collection ("": the default of those without a percent of their own).
ramps = Table(
    "ramps",
    metadata,
    name_column("collection_id", primary_key=True),
    Column("plan", JSONB, nullable=False),
    Column("state", JSONB, nullable=False),
    # The sum of the figures when the ramp came to its present percent.
    Column("baseline", JSONB, nullable=False),
    # What it did last, and why.
    Column("reason", Text, nullable=False),
    Column("who", Text, nullable=False),
    # The sidecar that carries it on, until when. Any other takes over from a dead one.
    Column("holder", Text),
    Column("lease_until", DateTime(timezone=True)),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    schema=SCHEMA,
)

# Work over all documents, or those of some collections, that outlives the processes that do
# it. While one is unfinished there is no other of its kind and group.
jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # backfill or validate
    Column("kind", Text, nullable=False),
    Column("grp", Text, nullable=False),
    # Root collections; empty: everything.
    Column("collections", ARRAY(Text), nullable=False),
    Column("options", JSONB, nullable=False),
    # running, paused, cancelled, done, failed
    Column("state", Text, nullable=False),
    # Why it is not running.
    Column("reason", Text, nullable=False, server_default=text("''")),
    Column("who", Text, nullable=False),
    # What `versions.seen` is set to by it: rises from job to job.
    Column("token", BigInteger, nullable=False),
    # Under what it was begun: with another authority or generation it cannot go on.
    Column("authority", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    # Documents that there were at the beginning, about; null: nobody could tell.
    Column("estimate", BigInteger),
    # What came of it as a whole, such as how many documents the sweep found; under `effort`
    # what the processes spent on it (see jobs/effort.py).
    Column("outcome", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("begun_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    schema=SCHEMA,
)
Index(
    "jobs_unfinished",
    jobs.c.kind,
    jobs.c.grp,
    unique=True,
    postgresql_where=text("state in ('running', 'paused')"),
)

# The parts of a job: ranges of names, worked on by one claimant at a time, in the order of
# their numbers. Cursor and counts change in the transaction of the page that they are of.
job_partitions = Table(
    "job_partitions",
    metadata,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    # While one of a lower rank is not done, none of a higher is begun.
    Column("rank", Integer, nullable=False),
    # The root collection that the range lies in; empty: in several.
    name_column("collection_id", nullable=False),
    # The first name, included, and the first that is not; null: there is no such bound.
    name_column("begins"),
    name_column("ends"),
    # The last name that is done.
    name_column("position"),
    Column("counts", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("done", Boolean, nullable=False, server_default=text("false")),
    Column("claim", Text),
    # The process that the claim is of.
    Column("holder", Text),
    Column("lease_until", DateTime(timezone=True)),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    schema=SCHEMA,
)

# Documents that a job could not store, whole: the bytes that the other store holds.
job_letters = Table(
    "job_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job", BigInteger, nullable=False),
    # Not indexed: it may be too long for that.
    name_column("path", nullable=False),
    Column("cause", Text, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("job_letters_job", "job", "id"),
    schema=SCHEMA,
)

# What a validation found: samples of differences (redacted), and the documents that moved at
# every look, which are looked at once more at its end.
findings = Table(
    "findings",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job", BigInteger, nullable=False),
    name_column("collection_id", nullable=False),
    name_column("path", nullable=False),
    Column("verdict", Text, nullable=False),
    Column("body", JSONB, nullable=False),
    Index("findings_job", "job", "verdict"),
    schema=SCHEMA,
)

# The reports of validations. A change of authority asks for the latest one.
certificates = Table(
    "certificates",
    metadata,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("grp", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # Under what it was found; the fingerprint is of the tables that the mapping asks for.
    Column("epoch", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False),
    # full, quick or since
    Column("mode", Text, nullable=False),
    # Root collections; empty: everything.
    Column("collections", ARRAY(Text), nullable=False),
    Column("equal", Boolean, nullable=False),
    # JSON, and not JSONB, which would order its keys anew.
    Column("report", JSON, nullable=False),
    schema=SCHEMA,
)

# Which triggers a mapped table has, by a hash of their text: making them again would hold
# up its writers at every start.
applied = Table(
    "applied",
    metadata,
    Column("name", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    schema=SCHEMA,
)

# Commits with a request_id that were applied while PostgreSQL was the authority,
# or mirrored from Firestore's intent documents.
requests = Table(
    "requests",
    metadata,
    Column("intent", Text, primary_key=True),
    Column("commit_time", BigInteger, nullable=False),
    # one per write, null after a delete
    Column("update_times", ARRAY(BigInteger), nullable=False),
    Column("inserted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    schema=SCHEMA,
)

# Documents of collections without a mapping of their own. `fields` is the tagged encoding
# of mapping.py, lossless for every legal value.
documents = Table(
    "documents",
    metadata,
    name_column("path", primary_key=True),
    name_column("collection_path", nullable=False),
    name_column("collection_id", nullable=False),
    Column("fields", JSONB, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Index("documents_collection_path", "collection_path", "path"),
    Index("documents_collection_id", "collection_id", "path"),
    schema=SCHEMA,
)
# The few documents in which a filter by JSON containment cannot find a field: one of
# their field names begins with "$" (see mapping.py).
Index(
    "documents_odd", documents.c.collection_path, postgresql_where=documents.c.fields.has_key("$m")
)
