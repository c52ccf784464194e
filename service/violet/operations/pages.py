"""Pages of lists. Pure.

A page's token says after which document the next one begins, and of which list it is:
the list goes on there though documents come and go meanwhile, and none is shown twice.
"""

import base64
from dataclasses import replace
from hashlib import blake2b

from crossfade.document import NAME, Reference
from crossfade.errors import InvalidArgument
from crossfade.query import Cursor, Order, Query

DEFAULT_SIZE = 100
MAX_SIZE = 1_000
_MARK = 6


def size_of(asked: int, *, default: int = DEFAULT_SIZE, most: int = MAX_SIZE) -> int:
    """Raises InvalidArgument for a negative one."""
    if asked < 0:
        raise InvalidArgument("page_size: it is negative")
    return min(asked or default, most)


def page(query: Query, size: int, token: str) -> Query:
    """The query of one page, in the order of ids. Raises InvalidArgument for a token that
    belongs to another list."""
    paged = replace(query, order_by=(Order(NAME),), limit=size)
    if not token:
        return paged
    last = _path_of(token, query)
    return replace(paged, start=Cursor((Reference(last),), before=False))


def token_after(query: Query, path: str) -> str:
    """The token of the page that begins after the document at `path`."""
    return base64.urlsafe_b64encode(_mark(query) + path.encode()).decode().rstrip("=")


def _path_of(token: str, query: Query) -> str:
    try:
        data = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), b"-_", validate=True)
        mark, path = data[:_MARK], data[_MARK:].decode()
    except (ValueError, UnicodeError) as error:
        raise InvalidArgument("page_token: it is none") from error
    if mark != _mark(query) or not path.startswith(f"{query.collection_path}/"):
        raise InvalidArgument("page_token: it belongs to another list")
    return path


def _mark(query: Query) -> bytes:
    asked = repr((query.collection_path, query.where))
    return blake2b(asked.encode(errors="surrogatepass"), digest_size=_MARK).digest()
