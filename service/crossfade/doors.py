"""Where callers come in: TCP, with TLS or without, a unix-domain socket, and the gate behind.

What a network could reach is not opened unless it is encrypted and callers show who they
are, or the settings say in so many words that nobody minds.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import grpc.aio
import structlog

from crossfade.access_watch import AccessWatch
from crossfade.certificates import Certificates
from crossfade.limits import UNLIMITED
from crossfade.rpc.gate import Gate
from crossfade.settings import Settings, SettingsError
from crossfade.telemetry import CERTIFICATE_REFUSED, TOKENS_REFUSED, UNDER_WAY, Telemetry

log = structlog.get_logger(__name__)


class Doors:
    """Raises SettingsError for doors that would stand open, and for files that are no use."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        check_exposure(settings)
        self._settings = settings.server
        self._watch = AccessWatch(settings.access)
        self.access = self._watch.access
        self.gate: Gate | None = None
        limits = settings.limits.allowance()
        if not self.access.open or limits != UNLIMITED:
            gate = self.gate = Gate(
                self.access,
                limits,
                telemetry,
                trust=settings.access.trust,
                certificates=settings.server.client_ca is not None,
            )
            telemetry.gauge(UNDER_WAY, lambda: float(gate.under_way))
        if not self.access.open:
            telemetry.gauge(TOKENS_REFUSED, lambda: float(bool(self._watch.problem)))
        self._certificates: Certificates | None = None
        if settings.server.cert is not None:
            certificates = self._certificates = Certificates(settings.server)
            telemetry.gauge(CERTIFICATE_REFUSED, lambda: float(bool(certificates.problem)))
        self._lock: int | None = None

    async def bind(self, server: grpc.aio.Server) -> str:
        """Opens them and starts the server. Returns host:port, or unix:PATH where there is no
        TCP. Raises OSError for a port or socket that is taken."""
        settings = self._settings
        address = f"unix:{settings.socket}"
        if settings.tcp:
            address = f"{settings.host}:{self._bind_tcp(server)}"
        if settings.socket is not None:
            self._bind_socket(server, settings.socket)
        await server.start()
        return address

    def _bind_tcp(self, server: grpc.aio.Server) -> int:
        host, port = self._settings.host, self._settings.port
        address = f"{host}:{port}"
        try:
            if self._certificates is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._certificates.credentials())
        except RuntimeError as error:
            raise OSError(
                f"port {port} of {host} is taken or not allowed; choose another with --port, "
                f"[server] port or CROSSFADE_SERVER__PORT (0 takes a free one)"
            ) from error

    def _bind_socket(self, server: grpc.aio.Server, path: Path) -> None:
        """GRPC puts its socket in the place of any other one, also of one that is in use: a lock
        beside it says whether it is."""
        self._lock = _lock(path)
        try:
            _clear(path)
        except OSError:
            self.close()
            raise
        mode = int(self._settings.socket_mode, 8)
        before = os.umask(0o777 & ~mode)  # from its first moment on
        try:
            server.add_insecure_port(f"unix:{path}")
            path.chmod(mode)
        except RuntimeError as error:
            self.close()
            raise OSError(f"the socket {path} cannot be made; choose another one") from error
        finally:
            os.umask(before)

    def problems(self, of_settings: Callable[[], str]) -> Callable[[], str]:
        """What is wrong with files that are watched, for the status."""

        def told() -> str:
            certificates = "" if self._certificates is None else self._certificates.problem
            return "; ".join(filter(None, (of_settings(), self._watch.problem, certificates)))

        return told

    async def run(self) -> None:
        """Watches the tokens' file, for ever."""
        await self._watch.run()

    def close(self) -> None:
        """After the server's end, which took the socket away: another may take its place."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError for a listener that a network could reach, and should not."""
    server = settings.server
    if not server.tcp or server.insecure or is_loopback(server.host):
        return
    others = 'host = "127.0.0.1", a socket, or insecure = true'
    if server.cert is None:
        raise SettingsError(
            f"[server] host: a network could reach {server.host}, and nothing that is sent there "
            f"is encrypted; set cert and key, {others}"
        )
    if not settings.certified:
        raise SettingsError(
            f"[server] host: a network could reach {server.host}, and everybody there may do "
            f"everything; set [access] tokens_file, client_ca, {others}"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _lock(path: Path) -> int:
    """Held until the descriptor is closed, or its process is dead. Raises OSError."""
    file = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OSError(
            f"the socket {path} cannot be made: {error.strerror}; choose another one with "
            f"[server] socket or CROSSFADE_SERVER__SOCKET"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OSError(f"another sidecar listens on the socket {path}") from error
    return descriptor


def _clear(path: Path) -> None:
    """Takes away what a dead server left there. Raises OSError for anything else."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(f"{path} is there and is no socket; choose another one with [server] socket")
    with socket.socket(socket.AF_UNIX) as probe:
        found = probe.connect_ex(str(path))
    if found not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise OSError(f"somebody listens on the socket {path}; choose another one")
    path.unlink(missing_ok=True)
