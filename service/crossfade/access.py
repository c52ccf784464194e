"""Who may call: bearer tokens and certificates with roles. Pure; `access_watch` reads the file.

A token is kept as its SHA-256 alone, and found by it: the table is asked for a hash that the
caller cannot choose, and `hmac.compare_digest` has the last word. So neither the time that it
takes nor an error says how near a wrong token was.
"""

import hmac
import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from crossfade.errors import PermissionDenied, Unauthenticated
from crossfade.limits import UNLIMITED, Allowance
from crossfade.settings import LimitSettings, Section

SCHEME = "bearer "
MIN_TOKEN, MAX_TOKEN = 16, 512
"""Characters."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What a header may carry (RFC 6750)."""
EMULATOR = "owner"
"""What Firestore's client libraries send when FIRESTORE_EMULATOR_HOST is set: nobody's secret."""


class Role(IntEnum):
    """Each may what those below it may."""

    READER = 1
    WRITER = 2
    ADMIN = 3


class AccessError(Exception):
    """Tokens that cannot be used. The message says where they are wrong, and shows none."""


@dataclass(frozen=True, slots=True)
class Token:
    """One entry. Several may bear a name: the old and the new one while they are rotated.

    `digest`: the SHA-256 of the secret. `certificate`: the name in the client certificate that
    stands for it instead. `expires`: seconds since 1970.
    """

    name: str
    role: Role
    digest: bytes = field(default=b"", repr=False)
    certificate: str = ""
    expires: float | None = None
    allowance: Allowance = UNLIMITED


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `name` is empty for one that did not have to say."""

    name: str
    role: Role
    allowance: Allowance = UNLIMITED


ANYONE = Caller("", Role.ADMIN)
"""While there are no tokens at all."""
acting: ContextVar[Caller] = ContextVar("acting", default=ANYONE)
"""Who calls, for what is done on their behalf."""
SOMEBODY = "somebody over the admin API"
_Known: TypeAlias = tuple[Token, Caller]
_NOBODY = (Token("", Role.READER, bytes(32), expires=0.0), ANYONE)


class Access:
    """The tokens in force. `replace` changes them all at once, under running calls.

    `trusted`: who calls over a transport that `[access] trust` names and shows no token.
    """

    def __init__(
        self,
        tokens: Sequence[Token] = (),
        *,
        trusted: Caller | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.trusted = trusted
        self._clock = clock
        self._by_digest: Mapping[bytes, _Known] = {}
        self._by_certificate: Mapping[str, _Known] = {}
        self.tokens: tuple[Token, ...] = ()
        self.replace(tokens)

    @property
    def open(self) -> bool:
        """Whether everybody may do everything, because there are no tokens."""
        return not self.tokens

    def replace(self, tokens: Sequence[Token]) -> None:
        known = [(each, Caller(each.name, each.role, each.allowance)) for each in tokens]
        self._by_digest = {each[0].digest: each for each in known if each[0].digest}
        self._by_certificate = {each[0].certificate: each for each in known if each[0].certificate}
        self.tokens = tuple(tokens)

    def role_of(self, authorization: str | None) -> Role | None:
        """The role behind an Authorization header; None: the caller is not known.

        Without any tokens everybody is an admin."""
        try:
            return self.caller(authorization).role
        except Unauthenticated:
            return None

    def caller(
        self,
        authorization: str | None,
        *,
        trust: bool = False,
        certificates: Sequence[str] = (),
    ) -> Caller:
        """Who calls. Raises Unauthenticated, with the same words for every token that is wrong.

        `trust`: the call came over a transport that needs no token. `certificates`: the names
        in the caller's certificate, which was checked.
        """
        if self.open:
            return ANYONE
        secret = _secret_of(authorization)
        if trust and self.trusted is not None and secret in {None, EMULATOR}:
            return self.trusted
        if secret is None or secret == EMULATOR:
            for name in certificates:
                known = self._by_certificate.get(name)
                if known is not None:
                    return self._current(known, "certificate")
        if secret is None:
            raise Unauthenticated(
                "no token: send the metadata authorization: Bearer TOKEN"
                if authorization is None
                else "authorization: it is not of the form Bearer TOKEN"
            )
        digest = sha256(secret.encode()).digest()
        found = self._by_digest.get(digest, _NOBODY)
        if not hmac.compare_digest(found[0].digest, digest):
            raise Unauthenticated("the token is not known, or has expired")
        return self._current(found, "token")

    def require(self, authorization: str | None, role: Role) -> Caller:
        """The caller, who has at least this role. Raises Unauthenticated, PermissionDenied."""
        caller = self.caller(authorization)
        check_role(caller, role)
        return caller

    def _current(self, known: "_Known", what: str) -> Caller:
        token, caller = known
        if token.expires is not None and token.expires <= self._clock():
            raise Unauthenticated(f"the {what} is not known, or has expired")
        return caller


def check_role(caller: Caller, role: Role) -> None:
    """Raises PermissionDenied when the caller's role is below `role`."""
    if caller.role < role:
        raise PermissionDenied(
            f"this needs the role {role.name.lower()}; yours is {caller.role.name.lower()}"
        )


def signed(who: str) -> str:
    """For the audit trail: `who` the caller says to be, and who is known to be by the token."""
    name = acting.get().name
    if who and name:
        return f"{who} (token {name})"
    return who or name or SOMEBODY


def _secret_of(authorization: str | None) -> str | None:
    if authorization is None or authorization[: len(SCHEME)].lower() != SCHEME:
        return None
    return authorization[len(SCHEME) :].strip()


# --- what tokens are written in ------------------------------------------------------------------


class _Entry(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]
    role: Literal["reader", "writer", "admin"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    token: Annotated[str, Field(min_length=MIN_TOKEN, max_length=MAX_TOKEN)] | None = None
    certificate: Annotated[str, Field(min_length=1)] | None = None
    expires: datetime | None = None
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _one_secret(self) -> "_Entry":
        given = [each for each in (self.sha256, self.token, self.certificate) if each is not None]
        if len(given) != 1:
            raise ValueError("give one of sha256, token and certificate")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError("a token has letters, digits, and any of - . _ ~ + / =")
        return self

    def entry(self) -> Token:
        digest = b""
        if self.token is not None:
            digest = sha256(self.token.encode()).digest()
        elif self.sha256 is not None:
            digest = bytes.fromhex(self.sha256)
        expires = self.expires
        if expires is not None and expires.tzinfo is None:
            expires = expires.replace(tzinfo=UTC)
        return Token(
            self.name,
            Role[self.role.upper()],
            digest,
            self.certificate or "",
            None if expires is None else expires.timestamp(),
            self.limits.allowance(),
        )


class _File(Section):
    token: Annotated[tuple[_Entry, ...], Field(min_length=1)]


def parse(text: str) -> tuple[Token, ...]:
    """The tokens of a file: TOML, a table [[token]] for each. Raises AccessError."""
    try:
        values: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The parser's own words may quote what stands there.
        where = re.search(r"\(at [^)]*\)$", str(error))
        raise AccessError(f"it is not TOML {where.group() if where else ''}".rstrip()) from None
    return _checked(values)


def parse_words(text: str) -> tuple[Token, ...]:
    """The tokens of a variable: "NAME ROLE TOKEN", divided by commas or lines. Raises
    AccessError."""
    entries = []
    for number, line in enumerate(filter(None, map(str.strip, re.split(r"[,\n]", text))), 1):
        words = line.split()
        if len(words) != 3:
            raise AccessError(f"entry {number} is not of the form NAME ROLE TOKEN")
        entries.append(dict(zip(("name", "role", "token"), words, strict=True)))
    return _checked({"token": entries})


def _checked(values: Mapping[str, Any]) -> tuple[Token, ...]:
    try:
        entries = _File.model_validate(values).token
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise AccessError(_sentence(first["loc"], first["msg"])) from None
    return check([entry.entry() for entry in entries])


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    where = "".join(f" {part + 1}" if isinstance(part, int) else f" {part}" for part in place)
    return f"{where.strip() or 'tokens'}: {message.removeprefix('Value error, ')}"


def check(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """Refuses tokens that contradict one another. Raises AccessError."""
    secrets: set[bytes | str] = set()
    named: dict[str, Token] = {}
    for token in tokens:
        secret = token.digest or token.certificate
        if secret in secrets:
            raise AccessError(f"token {token.name}: another entry has the same secret")
        secrets.add(secret)
        other = named.setdefault(token.name, token)
        if (other.role, other.allowance) != (token.role, token.allowance):
            raise AccessError(f"token {token.name}: entries of one name have one role and limits")
    return tuple(tokens)
