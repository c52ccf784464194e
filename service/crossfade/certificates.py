"""The server's certificate, taken anew when its files change, for the next connection.

gRPC asks for it at every handshake, on a thread of its own. Files that do not fit together (a
renewal puts one after the other) change nothing, and are told of until they do.
"""

import ssl
from pathlib import Path

import grpc
import structlog

from crossfade.settings import ServerSettings, SettingsError

log = structlog.get_logger(__name__)


class Certificates:
    """`cert` and `key` of the settings must be there. Raises SettingsError."""

    def __init__(self, settings: ServerSettings) -> None:
        if settings.cert is None or settings.key is None:
            raise SettingsError("[server] cert and key: TLS needs both")
        self._cert, self._key, self._ca = settings.cert, settings.key, settings.client_ca
        self._seen = self._marks()
        self.problem = ""
        """Why the files are not in force; empty: they are."""
        try:
            self._first = self._read()
        except (OSError, ValueError) as error:
            raise SettingsError(self._sentence(error)) from None

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            # The stubs do not know that None stands for nothing new.
            self.look,  # type: ignore[arg-type]
            require_client_authentication=self._ca is not None,
        )

    def look(self) -> grpc.ServerCertificateConfiguration | None:
        """Another configuration, if the files are others than when they were looked at last."""
        marks = self._marks()
        if marks == self._seen:
            return None
        self._seen = marks
        try:
            fresh = self._read()
        except (OSError, ValueError) as error:
            problem = self._sentence(error)
            if problem != self.problem:
                log.error("the certificate is refused, the old one stays", problem=problem)  # noqa: TRY400
            self.problem = problem
            return None
        self.problem = ""
        log.info("the certificate is taken", file=str(self._cert))
        return fresh

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Raises OSError, ValueError (ssl.SSLError is an OSError)."""
        key, cert = self._key.read_bytes(), self._cert.read_bytes()
        # gRPC would take a key of another certificate, and then fail every handshake.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key, password="")
        ca = None
        if self._ca is not None:
            ca = self._ca.read_bytes()
            ssl.create_default_context(cadata=ca.decode())
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def _sentence(self, error: Exception) -> str:
        reason = "they are not PEM, or do not belong together"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            reason = f"{error.filename}: {error.strerror}"
        return f"[server] cert, key, client_ca: {reason}"

    def _marks(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_mark, filter(None, (self._cert, self._key, self._ca))))


def _mark(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
