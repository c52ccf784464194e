"""Who may ask what over HTTP.

Two kinds of callers: programs with a bearer token, and browsers. A browser also sends what
some other page made it send, so a request that says it comes from another page is refused
(`Origin`, `Sec-Fetch-Site`), and so is one for a name that is not this server's (`Host`):
with a name of his own that resolves to 127.0.0.1 a stranger's page would be of the same origin.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson

from crossfade.access import Access, Role
from crossfade.admin.parts import Admit
from crossfade.admin.problems import problem_of
from crossfade.errors import CrossfadeError, PermissionDenied

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Probes ask them by whatever name or address they know, and learn nothing but the stage."""
GUARDED = ("/api/", "/metrics")
"""What holds anything. The page itself may be reached by a link from anywhere."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # Whoever asks again must be told what is so now.
    (b"cache-control", b"no-cache"),
)


def admission(access: Access, *, minded: bool, role: Role = Role.ADMIN) -> Admit:
    """Who may ask: those of at least this role. `minded`: without tokens nobody may, for others
    than this machine reach it."""

    def admit(authorization: str | None) -> str:
        if access.open and minded:
            raise PermissionDenied(
                "the admin API listens for other machines, and there are no tokens: set one with "
                f"the role {role.name.lower()} ([access] tokens_file), or "
                '[admin] host = "127.0.0.1"'
            )
        return access.require(authorization, role).name

    return admit


class SameOrigin:
    """The application, for its own pages and for programs. `hosts`: names that it is known by,
    beside localhost and every address."""

    def __init__(self, application: Asgi, hosts: Iterable[str] = ()) -> None:
        self._application = application
        self._hosts = frozenset(name.lower() for name in hosts) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in HEADERS if header[0] not in given),
                ]
            await send(message)

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            if scope["path"] not in OPEN_PATHS:
                self._check_host(headers)
            if scope["path"].startswith(GUARDED):
                _check_origin(headers)
        except CrossfadeError as error:
            await _refuse(error, send_with_headers)
            return
        await self._application(scope, receive, send_with_headers)

    def _check_host(self, headers: dict[str, str]) -> None:
        name = _host_name(headers.get("host", ""))
        if name not in self._hosts and not _is_address(name):
            raise PermissionDenied("host: this is no name of this server; [admin] hosts has them")


def _check_origin(headers: dict[str, str]) -> None:
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        raise PermissionDenied("origin: only pages of this server may ask")
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        raise PermissionDenied("sec-fetch-site: only pages of this server may ask")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(error: CrossfadeError, send: Send) -> None:
    status, body = problem_of(error)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    await send({"type": "http.response.body", "body": orjson.dumps(body.model_dump())})
