"""The idempotency key of a purchase, from its reservation to its settlement.

These functions add commands to the batches of reservations and settlements, so that the key is
kept, and its result stored, as durably as the purchase itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.cache import idempotency_keys as keys
from gateway.cache.idempotency_results import (
    IdempotentRequest,
    encode_failure,
    encode_images,
    encode_lock,
    worker_died,
)
from gateway.errors import UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import DeleteValue, GetValue, SetValue
from gateway.store.protocol import Store


async def keep_for_purchase(store: Store, idempotent: IdempotentRequest, purchase: str) -> bool:
    """Keeps the key for a purchase until it is settled, whatever becomes of its worker.

    To be called once the purchase is reserved, and before anything is sent. False if the request
    has lost the key: its lock has expired. Raises `StoreUnavailable`.
    """
    # Never in place of nothing: a call that timed out may run after the purchase was cancelled.
    kept = encode_lock(idempotent, purchase=purchase)
    expected = (encode_lock(idempotent), kept)
    keep = SetValue(keys.SPACE, idempotent.name, kept, keys.RESULT_SECONDS, expected=expected)
    if await execute(store, keep):
        return True
    # An earlier purchase of the same request may have kept the key, or stored its result.
    found = await execute(store, GetValue(keys.SPACE, idempotent.name))
    if found is None or not keys.is_of(found, idempotent):
        return False
    return await execute(store, replace(keep, expected=(found,)))


def store_purchased(
    batch: Batch, idempotent: IdempotentRequest, purchase: str, images: Sequence[Image]
) -> None:
    """Stores the images of a purchase as the result; belongs before its settlement."""
    # Also in place of the failure with which another worker has ended a purchase whose worker it
    # took for dead.
    dead = encode_failure(idempotent, worker_died())
    locks = _locks(idempotent, purchase)
    keys.set_result(batch, idempotent, encode_images(idempotent, images), instead_of=(*locks, dead))


def store_failed(
    batch: Batch, idempotent: IdempotentRequest, purchase: str, failure: UpstreamFailure
) -> None:
    """Ends the key's lock by the failure of a purchase; belongs before its settlement.

    A failure that was, or may have been, charged is the result. After any other one the request has
    the key for some seconds, in which it releases it.
    """
    if failure.is_charged:
        locks = _locks(idempotent, purchase)
        keys.set_result(batch, idempotent, encode_failure(idempotent, failure), instead_of=locks)
        return
    lock, kept = _locks(idempotent, purchase)
    batch.add(SetValue(keys.SPACE, idempotent.name, lock, keys.LOCK_SECONDS, expected=(kept,)))


def release_cancelled(batch: Batch, idempotent: IdempotentRequest, purchase: str) -> None:
    """Releases the key of a purchase that was cancelled before anything was sent."""
    # First the request's lock: without it, a lock of the purchase that is on its way is not set.
    for lock in _locks(idempotent, purchase):
        batch.add(DeleteValue(keys.SPACE, idempotent.name, lock))
    keys.notify(batch, idempotent)


def _locks(idempotent: IdempotentRequest, purchase: str) -> tuple[bytes, bytes]:
    return encode_lock(idempotent), encode_lock(idempotent, purchase=purchase)
