"""Seals bytes with a passphrase: scrypt makes the key, AES-256-GCM encrypts and authenticates."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from gateway.access.backup import BadBackup
from gateway.stored import UNREADABLE

KDF: Final = "scrypt"
CIPHER: Final = "aes-256-gcm"
COST: Final = 2**15
"""Of scrypt, with 8 and 1: 32 MiB and a tenth of a second for each guess (RFC 7914 §2)."""
MAX_COST: Final = 2**18
"""A file that asks for more would take the machine's memory."""
BLOCK_SIZE: Final = 8
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
KEY_BYTES: Final = 32


def seal(data: bytes, passphrase: str, *, context: bytes) -> dict[str, Any]:
    """The encrypted bytes as a JSON object. `context` is needed again to open them."""
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    key = _derive(passphrase, salt, COST)
    return {
        "kdf": KDF,
        "cost": COST,
        "cipher": CIPHER,
        "salt": b64encode(salt).decode(),
        "nonce": b64encode(nonce).decode(),
        "data": b64encode(AESGCM(key).encrypt(nonce, data, context)).decode(),
    }


def unseal(sealed: Mapping[str, Any], passphrase: str, *, context: bytes) -> bytes:
    """The bytes. Raises `BadBackup` for another passphrase, another form, or changed bytes."""
    try:
        cost = sealed["cost"]
        salt, nonce, data = (b64decode(sealed[name], validate=True) for name in _FIELDS)
        is_known = (sealed["kdf"], sealed["cipher"]) == (KDF, CIPHER) and type(cost) is int
        if not is_known or cost not in _costs() or len(nonce) != NONCE_BYTES:
            raise ValueError
    except UNREADABLE:
        raise BadBackup(
            "its signing keys are encrypted in a way that this gateway does not know"
        ) from None
    try:
        return AESGCM(_derive(passphrase, salt, cost)).decrypt(nonce, data, context)
    except InvalidTag:
        raise BadBackup("the passphrase is not that of its signing keys") from None


_FIELDS: Final = ("salt", "nonce", "data")


def _costs() -> list[int]:
    """Powers of two, as scrypt asks for, up to the largest."""
    return [2**power for power in range(10, MAX_COST.bit_length())]


def _derive(passphrase: str, salt: bytes, cost: int) -> bytes:
    scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=cost, r=BLOCK_SIZE, p=1)
    return scrypt.derive(passphrase.encode())
