"""Whether a store is there, asked before anything is started."""

import asyncio
from contextlib import suppress

from crossfade.settings import PostgresqlSettings

PROBE_SECONDS = 5.0


class CannotStart(Exception):
    """Nothing was done; the message says what to change."""


async def probe_postgresql(postgresql: PostgresqlSettings) -> None:
    """Connects once. Raises CannotStart that names host, port and database, no password."""
    import asyncpg

    target = postgresql.target
    try:
        connection = await asyncpg.connect(postgresql.dsn, timeout=PROBE_SECONDS)
    except asyncpg.InvalidCatalogNameError:
        problem = "there is no such database; create it, or change the URL"
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        problem = "the server refuses the user or the password of the URL"
    except asyncpg.PostgresError as error:
        problem = f"the server refuses the connection (SQLSTATE {error.sqlstate})"
    except TimeoutError:
        problem = f"no answer within {PROBE_SECONDS:.0f} s; is the host right?"
    except OSError as error:
        reason = error.strerror or type(error).__name__
        problem = f"it cannot be reached ({reason}); is it running, and the URL right?"
    except (asyncpg.InterfaceError, ValueError) as error:
        problem = f"the URL cannot be used ({type(error).__name__})"
    else:
        with suppress(Exception):
            await connection.close(timeout=PROBE_SECONDS)
        return
    raise CannotStart(f"PostgreSQL {target}: {problem}")


async def probe_firestore(address: str) -> None:
    """Raises CannotStart when nothing listens at an emulator's host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise CannotStart(f'--firestore: "{address}" is not HOST:PORT')
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), PROBE_SECONDS)
    except (OSError, OverflowError) as error:
        raise CannotStart(
            f"Firestore {address}: it cannot be reached; is the emulator running there?"
        ) from error
    writer.close()
