"""What alembic runs: the migrations of Crossfade and of the mapping.

The connection and the rest are given by `evolve.py`; there is no alembic.ini.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    version_table_schema="crossfade",
    include_schemas=True,
    include_name=context.config.attributes["include_name"],
    include_object=context.config.attributes["include_object"],
)
with context.begin_transaction():
    context.run_migrations()
