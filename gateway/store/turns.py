"""Turns: a background job that every worker runs, and that one of them does for all."""

from __future__ import annotations

from typing import Final

from gateway.store.batch import execute
from gateway.store.commands import SetValue
from gateway.store.protocol import Store

SPACE: Final = "turns"

PART_OF_INTERVAL: Final = 0.9
"""A turn that lasts for this part of its job's interval has expired when the next one is due."""


async def take_turn(store: Store, job: str, worker: str, *, seconds: float) -> bool:
    """Takes the turn of a job; False while another one lasts. Raises `StoreUnavailable`."""
    turn = SetValue(SPACE, job, worker.encode(), seconds, only_if_absent=True)
    return await execute(store, turn)


async def end_turn(store: Store, job: str, worker: str, *, after_seconds: float) -> None:
    """Ends the turn that this worker has, after a pause. Raises `StoreUnavailable`."""
    await execute(store, SetValue(SPACE, job, worker.encode(), after_seconds))
