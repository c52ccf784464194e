"""Who may call: tokens, roles, the file they are read from, and what they may use."""

import hmac
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import SecretStr

from crossfade.access import (
    ANYONE,
    Access,
    AccessError,
    Caller,
    Role,
    check_role,
    parse,
    parse_words,
)
from crossfade.access_watch import AccessWatch
from crossfade.errors import PermissionDenied, ResourceExhausted, Unauthenticated
from crossfade.limits import BUSY_SECONDS, Allowance, Meter
from crossfade.settings import AccessSettings, SettingsError

READER, WRITER, ADMIN = "reader-0123456789", "writer-0123456789", "admin-01234567890"
FILE = f"""
[[token]]
name = "dashboards"
role = "reader"
token = "{READER}"

[[token]]
name = "proxy"
role = "writer"
sha256 = "{sha256(WRITER.encode()).hexdigest()}"
expires = 2030-01-01T00:00:00Z
limits = {{ concurrency = 3 }}

[[token]]
name = "operator"
role = "admin"
certificate = "operator.internal"
"""
SOON = 1_893_456_000.0
"""2030-01-01."""


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_a_token_stands_for_its_role():
    access = Access(parse(FILE), clock=lambda: SOON - 1)
    assert access.role_of(bearer(READER)) is Role.READER
    assert access.role_of(bearer(WRITER)) is Role.WRITER
    assert access.role_of(f"bearer  {READER} ") is Role.READER
    for wrong in (None, "", READER, "Basic " + READER, bearer(""), bearer(READER + "x"), "Bearer"):
        assert access.role_of(wrong) is None
    assert access.caller(bearer(WRITER)) == Caller("proxy", Role.WRITER, Allowance(concurrency=3))


def test_without_tokens_everybody_is_an_admin():
    access = Access()
    assert access.open
    assert access.role_of(None) is Role.ADMIN
    assert access.caller(bearer("anything")) is ANYONE


def test_an_expired_token_is_refused_in_the_words_of_an_unknown_one():
    now = [SOON - 1]
    access = Access(parse(FILE), clock=lambda: now[0])
    access.require(bearer(WRITER), Role.WRITER)
    now[0] = SOON
    with pytest.raises(Unauthenticated) as expired:
        access.require(bearer(WRITER), Role.READER)
    with pytest.raises(Unauthenticated) as unknown:
        access.caller(bearer("nobody-0123456789"))
    assert str(expired.value) == str(unknown.value)


def test_too_small_a_role_is_refused():
    access = Access(parse(FILE), clock=lambda: 0)
    assert access.require(bearer(READER), Role.READER).name == "dashboards"
    with pytest.raises(PermissionDenied, match="needs the role admin; yours is reader"):
        access.require(bearer(READER), Role.ADMIN)
    check_role(Caller("", Role.ADMIN), Role.WRITER)


def test_every_lookup_ends_with_a_comparison_in_constant_time(monkeypatch):
    compared = []
    genuine = hmac.compare_digest

    def compare(a, b):
        compared.append((len(a), len(b)))
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    access = Access(parse(FILE), clock=lambda: 0)
    access.role_of(bearer(READER))
    access.role_of(bearer("nobody-0123456789"))
    assert compared == [(32, 32), (32, 32)]


def test_a_trusted_transport_needs_no_token_and_takes_no_wrong_one():
    access = Access(parse(FILE), trusted=Caller("", Role.WRITER), clock=lambda: SOON)
    assert access.caller(None, trust=True).role is Role.WRITER
    # What the genuine client sends to an emulator.
    assert access.caller("Bearer owner", trust=True).role is Role.WRITER
    for trust, shown in ((False, None), (False, "Bearer owner"), (True, bearer(WRITER))):
        with pytest.raises(Unauthenticated):
            access.caller(shown, trust=trust)


def test_a_certificate_stands_for_a_token():
    access = Access(parse(FILE), clock=lambda: 0)
    named = access.caller(None, certificates=("somebody", "operator.internal"))
    assert named == Caller("operator", Role.ADMIN)
    with pytest.raises(Unauthenticated):
        access.caller(None, certificates=("somebody",))
    # Whoever shows a token is judged by it.
    assert access.caller(bearer(READER), certificates=("operator.internal",)).role is Role.READER


def test_two_tokens_of_a_name_while_they_are_rotated():
    rotated = parse_words(f"proxy writer {WRITER}, proxy writer {READER}")
    access = Access(rotated)
    assert access.caller(bearer(WRITER)) == access.caller(bearer(READER))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("token = [", "it is not TOML"),
        (f"{WRITER} = ", "it is not TOML"),
        ("", "token: Field required"),
        ("token = []", "at least 1 item"),
        (f'[[token]]\nname = "a"\ntoken = "{WRITER}"', "token 1 role: Field required"),
        (f'[[token]]\nname = "a"\nrole = "root"\ntoken = "{WRITER}"', "token 1 role: "),
        (f'[[token]]\nname = "a b"\nrole = "reader"\ntoken = "{WRITER}"', "token 1 name: "),
        ('[[token]]\nname = "a"\nrole = "reader"', "give one of sha256, token and certificate"),
        ('[[token]]\nname = "a"\nrole = "reader"\ntoken = "short"', "at least 16 characters"),
        ('[[token]]\nname = "a"\nrole = "reader"\ntoken = "seventeen letters"', "letters, digits"),
        ('[[token]]\nname = "a"\nrole = "reader"\nsha256 = "beef"', "token 1 sha256: "),
        (FILE + FILE, "has the same secret"),
        (FILE + f'[[token]]\nname = "proxy"\nrole = "admin"\ntoken = "{ADMIN}"', "one role"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_shows_no_token(text, reason):
    with pytest.raises(AccessError) as refused:
        parse(text)
    assert reason in str(refused.value)
    for secret in (READER, WRITER, ADMIN, "short", "seventeen", "beef"):
        assert secret not in str(refused.value)


def test_words_that_are_no_tokens():
    with pytest.raises(AccessError, match="entry 2 is not of the form NAME ROLE TOKEN"):
        parse_words(f"proxy writer {WRITER},\noperator admin")


def test_no_token_is_seen_in_what_is_printed():
    assert WRITER not in repr(parse(FILE))
    assert sha256(WRITER.encode()).hexdigest() not in repr(parse(FILE))
    assert repr(sha256(WRITER.encode()).digest()) not in repr(parse(FILE))


def test_the_file_of_the_documentation_can_be_used():
    text = (Path(__file__).resolve().parents[2] / "docs/security.md").read_text()
    (example,) = [block for block in text.split("```toml\n") if block.startswith("[[token]]")]
    tokens = parse(example.partition("```")[0])
    assert [(each.name, each.role.name) for each in tokens] == [
        ("proxy", "WRITER"),
        ("dashboards", "READER"),
        ("operator", "ADMIN"),
    ]


# --- the file ------------------------------------------------------------------------------------


def put(file, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


async def test_tokens_are_rotated_while_it_runs(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(FILE)
    words = SecretStr(f"env admin {ADMIN}")
    watch = AccessWatch(AccessSettings(tokens_file=file, tokens=words))
    access = watch.access
    assert access.role_of(bearer(READER)) is Role.READER
    put(file, f'[[token]]\nname = "new"\nrole = "writer"\ntoken = "{WRITER}-new"')
    await watch.look()
    assert access.role_of(bearer(READER)) is None
    assert access.role_of(bearer(f"{WRITER}-new")) is Role.WRITER
    assert access.role_of(bearer(ADMIN)) is Role.ADMIN
    assert not watch.problem


@pytest.mark.parametrize("bad", ["", "[[token]]\nname =", None])
async def test_a_bad_file_leaves_the_tokens_in_force(tmp_path, bad):
    file = tmp_path / "tokens.toml"
    file.write_text(FILE)
    watch = AccessWatch(AccessSettings(tokens_file=file))
    if bad is None:
        file.unlink()
    else:
        put(file, bad)
    await watch.look()
    assert str(file) in watch.problem
    assert watch.access.role_of(bearer(READER)) is Role.READER
    put(file, FILE.replace(READER, ADMIN))
    await watch.look()
    assert not watch.problem
    assert watch.access.role_of(bearer(ADMIN)) is Role.READER


def test_a_start_with_a_bad_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        AccessWatch(AccessSettings(tokens_file=tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match=r"\[access\] tokens: entry 1"):
        AccessWatch(AccessSettings(tokens=SecretStr("secret")))


# --- limits --------------------------------------------------------------------------------------


def test_concurrency_is_counted_in_and_out():
    meter = Meter(Allowance(concurrency=2), "token proxy")
    meter.begin()
    meter.begin()
    with pytest.raises(ResourceExhausted, match="limit concurrency of token proxy") as refused:
        meter.begin()
    assert refused.value.limit == "concurrency"
    assert refused.value.retry_after == BUSY_SECONDS
    meter.end()
    meter.begin()


def test_a_rate_is_a_bucket_and_says_when_it_has_one_again():
    now = [100.0]
    meter = Meter(Allowance(rate=2.0, burst=3), "all", clock=lambda: now[0])
    for _ in range(3):
        meter.begin()
    with pytest.raises(ResourceExhausted) as refused:
        meter.begin()
    assert refused.value.retry_after == pytest.approx(0.5)
    now[0] += 0.5
    meter.begin()
    with pytest.raises(ResourceExhausted):
        meter.begin()
    now[0] += 1_000
    for _ in range(3):
        meter.begin()
    with pytest.raises(ResourceExhausted):
        meter.begin()


def test_a_refused_call_takes_nothing_of_the_rate():
    now = [0.0]
    meter = Meter(Allowance(rate=1.0, concurrency=1), "all", clock=lambda: now[0])
    meter.begin()
    now[0] += 1
    with pytest.raises(ResourceExhausted, match="concurrency"):
        meter.begin()
    meter.end()
    meter.begin()


def test_sizes_are_refused_by_the_limit_that_is_over():
    meter = Meter(Allowance(message_kb=1, documents=2, result_kb=4), "token proxy")
    meter.check_message(1_024)
    meter.check_result(2, 4_096)
    for limit, over in (
        ("message_kb", lambda: meter.check_message(1_025)),
        ("documents", lambda: meter.check_result(3, 0)),
        ("result_kb", lambda: meter.check_result(0, 4_097)),
    ):
        with pytest.raises(ResourceExhausted) as refused:
            over()
        assert (refused.value.limit, refused.value.retry_after) == (limit, None)
