"""Sealed bytes are opened with their passphrase and context, and by nothing else."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.access import sealed
from gateway.access.backup import BadBackup
from gateway.access.sealed import seal, unseal

PASSPHRASE = "a passphrase of tests"
SEALED = seal(b"the signing keys", PASSPHRASE, context=b"1")


def test_sealed_bytes_come_back_and_are_not_readable():
    assert unseal(SEALED, PASSPHRASE, context=b"1") == b"the signing keys"
    assert b"signing" not in b64decode(SEALED["data"])
    assert seal(b"the signing keys", PASSPHRASE, context=b"1") != SEALED


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["salt", "nonce", "data"]), st.integers(0, 2**16), st.integers(1, 255))
def test_any_changed_byte_is_refused(name: str, position: int, change: int):
    data = bytearray(b64decode(SEALED[name]))
    data[position % len(data)] ^= change
    with pytest.raises(BadBackup, match="the passphrase is not that"):
        unseal({**SEALED, name: b64encode(data).decode()}, PASSPHRASE, context=b"1")


def test_another_passphrase_or_context_is_refused():
    for passphrase, context in (("another passphrase", b"1"), (PASSPHRASE, b"2")):
        with pytest.raises(BadBackup, match="the passphrase is not that"):
            unseal(SEALED, passphrase, context=context)


@pytest.mark.parametrize(
    "change",
    [
        {"kdf": "pbkdf2"},
        {"cipher": "none"},
        {"cost": 2 * sealed.MAX_COST},
        {"cost": 1},
        {"cost": 32768.0},
        {"cost": "32768"},
        {"cost": [32768]},
        {"nonce": "AAAA"},
        {"nonce": None},
        {"data": "not base64!"},
        {"salt": 7},
    ],
)
def test_another_form_is_refused_before_anything_is_computed(change: dict[str, object]):
    with pytest.raises(BadBackup, match="in a way that this gateway does not know"):
        unseal({**SEALED, **change}, PASSPHRASE, context=b"1")
