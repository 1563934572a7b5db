"""The commands of `commands.journals` for Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.call import (
    SECOND,
    Call,
    _call,
    _flat,
    _optional,
    _pairs,
    call_for,
)
from gateway.store.redis.commands.counters import _index, _read_states, _take_arguments
from gateway.store.redis.keys import Keys


@call_for.register
def _reserve(command: commands.Reserve, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> commands.Reservation:
        refused, states, now = reply
        return commands.Reservation(_index(refused), _read_states(states), now / SECOND)

    arguments = [
        command.purchase,
        command.worker,
        command.payload,
        *_take_arguments(command.consumptions),
    ]
    return _call("reserve", [keys.books], arguments, read=read)


@call_for.register
def _receive(command: commands.Receive, keys: Keys) -> Call:
    return _call("receive", [keys.books], [command.purchase, command.payload], read=bytes.decode)


@call_for.register
def _settle(command: commands.Settle, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> commands.Settlement:
        status, presumed, charged, states = reply
        return commands.Settlement(
            status=status.decode(),
            charged={unit.decode(): amount for unit, amount in _pairs(charged)},
            presumed=bool(presumed),
            states=_read_states(states),
        )

    flags = (int(command.presumed), int(command.correct), *_optional(command.record))
    arguments = (command.purchase, *flags, *_flat(command.charge.items()))
    return _call("settle", [keys.books], arguments, read=read)


@call_for.register
def _open_journals(command: commands.OpenJournals, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Sequence[commands.Journal]:
        fields = iter(reply)
        return [
            commands.Journal(purchase.decode(), worker.decode(), _open_state(state), payload)
            for purchase, worker, state, payload in zip(*[fields] * 4, strict=True)
        ]

    workers = () if command.worker is None else (command.worker,)
    return _call("open_journals", [keys.books], workers, read=read)


def _open_state(state: bytes) -> Any:
    return state.decode()
