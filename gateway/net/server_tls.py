"""TLS of the listening sockets: the certificate, its reloading, and when it expires.

A new pair of files is adopted as a whole: if anything is wrong with it, connections keep the old
certificate.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

EXPIRES_SOON_DAYS: Final = 14
"""ACME clients renew earlier, so a certificate this old was not renewed."""

log = structlog.get_logger(__name__)


class BadPair(Exception):
    """The files cannot be used together. The message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate with its intermediates, and its private key, as PEM files."""

    cert: Path
    key: Path

    def state(self) -> object:
        """Differs after every change: modification times, sizes and inodes."""
        # Follows symbolic links, by which certbot and Kubernetes switch to a new pair.
        return tuple(_state_of(path) for path in (self.cert, self.key))


def _state_of(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def load_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's TLS context with the pair. Raises `BadPair`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could have the server do the expensive part of a handshake again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _check_readable(files)
    try:
        context.load_cert_chain(files.cert, files.key, password=_refuse_passphrase)
        expiry_of(files.cert)
    except _NeedsPassphrase:
        raise BadPair(
            f"{files.key} has a passphrase: remove it with `openssl pkey -in {files.key}`, and let "
            "only the gateway read the result."
        ) from None
    except ssl.SSLError as error:
        raise BadPair(_explain(files, error)) from None
    return context


def _check_readable(files: TlsFiles) -> None:
    # OpenSSL does not tell which file it could not open.
    for path, contents in ((files.cert, "CERTIFICATE"), (files.key, "PRIVATE KEY")):
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise BadPair(
                f"{path} cannot be read: {error.strerror}. Name a PEM file that the gateway's user "
                "can read."
            ) from None
        if f"{contents}-----" not in text:
            raise BadPair(f"{path} contains no {contents.lower()} in PEM.")


def _explain(files: TlsFiles, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{files.key} is not the key of {files.cert}: name the files of one pair."
    reason = (error.reason or "not PEM").replace("_", " ").lower()
    return f"{files.cert} and {files.key} cannot be used: {reason}."


class _NeedsPassphrase(Exception):
    pass


def _refuse_passphrase() -> str:
    # Otherwise OpenSSL would ask for it on the terminal, and wait.
    raise _NeedsPassphrase


class ServerTls:
    """The current certificate of the listening sockets, and its reloading.

    Raises `BadPair` if the files cannot be used at the start. `on_failure` is called when a changed
    pair is not adopted.
    """

    def __init__(self, files: TlsFiles, *, on_failure: Callable[[], None]) -> None:
        self._files = files
        self._on_failure = on_failure
        self.is_faulty = False
        """Whether the files have a fault, so that an older pair is still used."""
        self._loaded_state = self._seen_state = files.state()
        # Listening sockets keep this one. It lets each handshake continue with the current one, so
        # that a pair is never half replaced.
        self.context: Final = load_context(files)
        self._current = self.context
        self._expires_at = expiry_of(files.cert)
        self.context.sni_callback = self._choose

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def reload_if_changed(self) -> None:
        """Reloads once after every change of the files, valid or not."""
        state = self._files.state()
        # The second of two files may not be written yet, so the state must be the same twice.
        is_settled, self._seen_state = state == self._seen_state, state
        if is_settled and state != self._loaded_state:
            self.reload()

    def reload(self) -> None:
        """Adopts the pair in the files if it is valid; otherwise logs why not."""
        self._loaded_state = self._files.state()
        try:
            current, expires_at = load_context(self._files), expiry_of(self._files.cert)
        except BadPair as fault:
            log.error("certificate_reload_failed", reason=str(fault))
            self.is_faulty = True
            self._on_failure()
            return
        self.is_faulty = False
        self._current, self._expires_at = current, expires_at
        log.info("certificate_loaded", expires_at=expires_at.isoformat())

    def log_expiry(self, now: datetime) -> None:
        """Logs a warning if the current certificate expires soon, or has expired."""
        if self._expires_at - now < timedelta(days=EXPIRES_SOON_DAYS):
            log.warning(
                "certificate_expires_soon",
                file=str(self._files.cert),
                expires_at=self._expires_at.isoformat(),
            )


# ── expiry ──────────────────────────────────────────────────────────────────────────────────

_UTC_TIME: Final = 0x17
_EXPLICIT_VERSION: Final = 0xA0


def expiry_of(cert: Path) -> datetime:
    """When the first certificate of a PEM file expires. Raises `BadPair`."""
    head, foot = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    try:
        body = cert.read_text(encoding="ascii", errors="replace").partition(head)[2].partition(foot)
        return _not_after(ssl.PEM_cert_to_DER_cert(head + body[0] + foot))
    except (OSError, ValueError, IndexError):
        raise BadPair(f"{cert} contains no certificate in PEM.") from None


def _not_after(der: bytes) -> datetime:
    """The end of a certificate's validity (RFC 5280 §4.1); the standard library cannot parse it."""
    _, certificate, _ = _read_element(der)
    _, rest, _ = _read_element(certificate)
    tag, _, after = _read_element(rest)
    if tag == _EXPLICIT_VERSION:  # left out in version 1
        rest = after
    for _ in range(3):  # serial number, signature algorithm, issuer
        _, _, rest = _read_element(rest)
    _, validity, _ = _read_element(rest)
    _, _, rest = _read_element(validity)  # notBefore
    tag, text, _ = _read_element(rest)
    # Two digits of a year are 1950 to 2049.
    century = b"" if tag != _UTC_TIME else b"19" if text[:2] >= b"50" else b"20"
    found = datetime.strptime((century + text).decode("ascii"), "%Y%m%d%H%M%SZ")  # noqa: DTZ007
    return found.replace(tzinfo=UTC)


def _read_element(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and contents of the first DER element, and the bytes after it."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    return data[0], data[start : start + length], data[start + length :]
