"""Where callers come in: sockets, TLS, and what is not opened to a network."""

import asyncio
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from crossfade.cli import main
from crossfade.doors import Doors, check_exposure
from crossfade.settings import AccessSettings, ServerSettings, Settings, SettingsError
from crossfade.telemetry import CERTIFICATE_REFUSED, Telemetry
from crossfade_api.v1 import crossfade_pb2
from crossfade_client import AsyncCrossfade, Crossfade, UnavailableError
from tests.certificates import Issued, authority, issued_by
from tests.guarded import ADMIN, guarded

GET = "/crossfade.v1.Crossfade/GetDocument"
NOT_FOUND = grpc.StatusCode.NOT_FOUND
CA = authority()


async def code_of(channel: Any) -> grpc.StatusCode:
    request = crossfade_pb2.GetDocumentRequest(name="tasks/1").SerializeToString()
    call = channel.unary_unary(GET)(request, timeout=5)
    return await call.code()


def written(folder: Path, issued: Issued) -> dict[str, Path]:
    files = {"cert": folder / "cert.pem", "key": folder / "key.pem"}
    issued.write(files["cert"], files["key"])
    return files


# --- the socket ----------------------------------------------------------------------------------


async def test_a_socket_instead_of_tcp(tmp_path):
    path = tmp_path / "crossfade.sock"
    async with guarded(server={"tcp": False, "socket": path, "socket_mode": "0660"}) as sidecar:
        assert sidecar.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        async with AsyncCrossfade(sidecar.address) as client:
            await client.set("tasks/1", {"a": 1})
        with Crossfade(f"unix:{path}") as waiting:
            assert (await asyncio.to_thread(waiting.get, "tasks/1")).fields == {"a": 1}
    assert not path.exists()


async def test_a_socket_beside_tcp_is_the_owners_alone_by_default(tmp_path):
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        async with guarded(server={"socket": path}) as sidecar:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for target in (sidecar.address, f"unix:{path}"):
                async with grpc.aio.insecure_channel(target) as channel:
                    assert await code_of(channel) is NOT_FOUND
    finally:
        os.umask(before)


async def test_what_a_dead_sidecar_left_is_cleared_away(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with (
        guarded(server={"tcp": False, "socket": path}) as sidecar,
        grpc.aio.insecure_channel(sidecar.address) as channel,
    ):
        assert await code_of(channel) is NOT_FOUND


async def test_two_sidecars_on_one_socket_are_refused(tmp_path):
    path = tmp_path / "s"
    async with guarded(server={"tcp": False, "socket": path}) as sidecar:
        with pytest.raises(OSError, match="another sidecar listens on the socket"):
            async with guarded(server={"tcp": False, "socket": path}):
                pass
        async with grpc.aio.insecure_channel(sidecar.address) as channel:
            assert await code_of(channel) is NOT_FOUND  # the first one's, as before


async def test_nothing_but_a_dead_socket_is_taken_away(tmp_path):
    file = tmp_path / "file"
    file.write_text("somebody's")
    with pytest.raises(OSError, match="is no socket"):
        async with guarded(server={"tcp": False, "socket": file}):
            pass
    assert file.read_text() == "somebody's"
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="somebody listens on the socket"):
            async with guarded(server={"tcp": False, "socket": path}):
                pass
    with pytest.raises(OSError, match="cannot be made: No such file or directory"):
        async with guarded(server={"tcp": False, "socket": tmp_path / "none" / "s"}):
            pass


# --- TLS -----------------------------------------------------------------------------------------


async def test_tls_and_its_renewal_without_a_restart(tmp_path):
    files = written(tmp_path, issued_by(CA, "first"))
    telemetry = Telemetry()
    async with guarded(server=files, telemetry=telemetry) as sidecar:
        async with AsyncCrossfade(sidecar.address, root_certificates=CA.pem) as client:
            await client.set("tasks/1", {"a": 1})
            renewed = issued_by(CA, "second")
            files["cert"].write_bytes(renewed.pem)  # a renewal, half of it
            assert await shown_by(sidecar.address) == "first"
            assert telemetry.read_gauge(CERTIFICATE_REFUSED) == {(): 1.0}
            assert "do not belong together" in (await sidecar.status()).settings_problem
            files["key"].write_bytes(renewed.key_pem)
            assert await shown_by(sidecar.address) == "second"
            assert not (await sidecar.status()).settings_problem
            await client.get("tasks/1")  # its connection stays
        async with AsyncCrossfade(sidecar.address, timeout=0.5) as plain:
            with pytest.raises(UnavailableError):
                await plain.get("tasks/1")
        async with AsyncCrossfade(
            sidecar.address, timeout=0.5, root_certificates=authority().pem
        ) as stranger:
            with pytest.raises(UnavailableError):
                await stranger.get("tasks/1")


async def shown_by(address: str) -> str:
    """The name in the certificate that the server shows."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=CA.pem.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname="localhost"
    )
    found: dict[str, Any] = writer.get_extra_info("peercert")
    writer.close()
    return str(dict(pair[0] for pair in found["subject"])["commonName"])


async def test_mutual_tls_says_who_calls(tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[[token]]\nname = "proxy"\nrole = "writer"\ncertificate = "proxy.internal"')
    ca = tmp_path / "ca.pem"
    ca.write_bytes(CA.pem)
    server = written(tmp_path, issued_by(CA, "sidecar")) | {"client_ca": ca}
    async with guarded(server=server, access={"tokens_file": tokens}) as sidecar:

        async def code(issued: Issued | None, method: str = GET) -> grpc.StatusCode:
            mine = (None, None) if issued is None else (issued.key_pem, issued.pem)
            credentials = grpc.ssl_channel_credentials(CA.pem, *mine)
            channel: Any = grpc.aio.secure_channel(sidecar.address, credentials)
            async with channel:
                call: Any = channel.unary_unary(method)(b"\n\x07tasks/1", timeout=2)
                return await call.code()

        assert await code(issued_by(CA, "proxy.internal")) is NOT_FOUND
        status = "/crossfade.v1.Admin/GetStatus"
        denied = await code(issued_by(CA, "proxy.internal"), status)
        assert denied is grpc.StatusCode.PERMISSION_DENIED
        assert await code(issued_by(CA, "nobody.internal")) is grpc.StatusCode.UNAUTHENTICATED
        for stranger in (None, issued_by(authority(), "proxy.internal")):
            assert await code(stranger) is grpc.StatusCode.UNAVAILABLE


def test_files_that_are_no_certificate_stop_the_start(tmp_path):
    files = written(tmp_path, issued_by(CA, "sidecar"))
    other = tmp_path / "other.pem"
    other.write_bytes(issued_by(CA, "sidecar").key_pem)
    for wrong, reason in (
        ({"key": other}, "do not belong together"),
        ({"client_ca": files["key"]}, "not PEM"),
        ({"cert": tmp_path / "none.pem"}, "none.pem: No such file"),
    ):
        settings = Settings(server=ServerSettings(**(files | wrong)))
        with pytest.raises(SettingsError, match=reason):
            Doors(settings, Telemetry())


# --- what a network could reach ------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "sidecar.internal"])
def test_a_network_is_not_let_in_by_accident(host):
    tls = {"cert": Path("c"), "key": Path("k")}
    tokens = AccessSettings(tokens=f"operator admin {ADMIN}")  # type: ignore[arg-type]

    def exposed(access: AccessSettings, **server: Any) -> None:
        check_exposure(Settings(server=ServerSettings(host=host, **server), access=access))

    for access in (AccessSettings(), tokens):
        with pytest.raises(SettingsError, match="nothing that is sent there is encrypted"):
            exposed(access)
    with pytest.raises(SettingsError, match="everybody there may do everything"):
        exposed(AccessSettings(), **tls)
    exposed(tokens, **tls)
    exposed(AccessSettings(), client_ca=Path("a"), **tls)
    exposed(AccessSettings(), insecure=True)
    exposed(AccessSettings(), tcp=False, socket=Path("s"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]", "::1"])
def test_loopback_is_no_network(host):
    check_exposure(Settings(server=ServerSettings(host=host)))


async def test_a_start_that_would_be_open_is_refused_before_anything_is_touched():
    with pytest.raises(SettingsError, match="a network could reach"):
        async with guarded(server={"host": "0.0.0.0"}):
            pass


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({"tcp": False}, "needs a socket"),
        ({"cert": "c"}, "belong together"),
        ({"client_ca": "c"}, "needs cert and key"),
        ({"socket": "/" + "x" * 107}, "107 bytes"),
        ({"socket_mode": "rw"}, "pattern"),
    ],
)
def test_settings_that_cannot_be_meant(server, reason):
    with pytest.raises(ValueError, match=reason):
        ServerSettings(**server)


# --- the commands --------------------------------------------------------------------------------


async def test_commands_show_their_token_over_tls_and_over_a_socket(tmp_path, monkeypatch, capsys):
    files = written(tmp_path, issued_by(CA, "sidecar"))
    ca, token = tmp_path / "ca.pem", tmp_path / "token"
    ca.write_bytes(CA.pem)
    token.write_text(f"{ADMIN}\n")
    server = files | {"socket": tmp_path / "s"}
    for name in ("CROSSFADE_TOKEN", "CROSSFADE_TOKEN_FILE", "CROSSFADE_CA"):
        monkeypatch.setenv(name, "")
    async with guarded(server=server, access={"tokens": f"operator admin {ADMIN}"}) as sidecar:

        async def crossfade(*words: str) -> int:
            return await asyncio.to_thread(main, list(words))

        at = f"--address={sidecar.address}"
        assert await crossfade("stage", at, "--ca", str(ca), f"--token-file={token}") == 0
        assert "authority" in capsys.readouterr().out
        monkeypatch.setenv("CROSSFADE_TOKEN_FILE", "")
        assert await crossfade("stage", at) == 1
        assert "no token" in capsys.readouterr().err
        monkeypatch.setenv("CROSSFADE_CA", "")
        monkeypatch.setenv("CROSSFADE_TOKEN", ADMIN)
        assert await crossfade("stage", f"--address=unix:{tmp_path}/s") == 0
        assert await crossfade("stage", at, "--token-file", str(tmp_path / "none")) == 2
        assert "cannot be read: No such file" in capsys.readouterr().err
        assert await crossfade("stage", "--ca") == 2
