"""The commands of `commands.journals` for Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands as verbs
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
def _reserve(verb: verbs.Reserve, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Reservation:
        refused, states, now = reply
        return verbs.Reservation(_index(refused), _read_states(states), now / SECOND)

    arguments = [verb.purchase, verb.worker, verb.payload, *_take_arguments(verb.takes)]
    return _call("reserve", [keys.books], arguments, read=read)


@call_for.register
def _receive(verb: verbs.Receive, keys: Keys) -> Call:
    return _call("receive", [keys.books], [verb.purchase, verb.payload], read=bytes.decode)


@call_for.register
def _settle(verb: verbs.Settle, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Settlement:
        status, presumed, charged, states = reply
        return verbs.Settlement(
            status=status.decode(),
            charged={unit.decode(): amount for unit, amount in _pairs(charged)},
            presumed=bool(presumed),
            states=_read_states(states),
        )

    flags = (int(verb.presumed), int(verb.correct), *_optional(verb.record))
    arguments = (verb.purchase, *flags, *_flat(verb.charge.items()))
    return _call("settle", [keys.books], arguments, read=read)


@call_for.register
def _open_journals(verb: verbs.OpenJournals, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Sequence[verbs.Journal]:
        fields = iter(reply)
        return [
            verbs.Journal(purchase.decode(), worker.decode(), _open_state(state), payload)
            for purchase, worker, state, payload in zip(*[fields] * 4, strict=True)
        ]

    workers = () if verb.worker is None else (verb.worker,)
    return _call("open_journals", [keys.books], workers, read=read)


def _open_state(state: bytes) -> Any:
    return state.decode()
