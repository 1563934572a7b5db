"""Encoders of `commands.journals`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from gateway.store import commands
from gateway.store.redis.commands.counters import consumption_arguments, read_index, read_states
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    flatten,
    optional,
    pairs,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _reserve(command: commands.Reserve, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Reservation:
        denied, states, now = reply
        return commands.Reservation(read_index(denied), read_states(states), now / SECOND)

    arguments: list[Argument] = [
        command.purchase,
        command.worker,
        command.payload,
        *consumption_arguments(command.consumptions),
    ]
    return script_command("reserve", [keys.books], arguments, read=read)


@encode.register
def _receive(command: commands.Receive, keys: Keys) -> RedisCommand:
    arguments: list[Argument] = [command.purchase, command.payload]
    return script_command("receive", [keys.books], arguments, read=bytes.decode)


@encode.register
def _settle(command: commands.Settle, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Settlement:
        status, presumed, charged, states = reply
        return commands.Settlement(
            status=status.decode(),
            charged={unit.decode(): amount for unit, amount in pairs(charged)},
            presumed=bool(presumed),
            states=read_states(states),
        )

    flags = (int(command.presumed), int(command.correct), *optional(command.record))
    arguments = (command.purchase, *flags, *flatten(command.charge.items()))
    return script_command("settle", [keys.books], arguments, read=read)


@encode.register
def _open_journals(command: commands.OpenJournals, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> Sequence[commands.Journal]:
        fields = iter(reply)
        return [
            commands.Journal(
                purchase.decode(), worker.decode(), state.decode(), payload, **_reserved(packed)
            )
            for purchase, worker, state, payload, packed in zip(*[fields] * 5, strict=True)
        ]

    workers = () if command.worker is None else (command.worker,)
    return script_command("open_journals", [keys.books], workers, read=read)


def _reserved(packed: bytes) -> dict[str, Any]:
    """The reserved amounts and their subjects, from packed consumptions."""
    with suppress(ValueError, TypeError, IndexError):
        consumptions = [(one[0], one[1], int(one[4])) for one in orjson.loads(packed)]
        return commands.reserved_by_unit(consumptions)
    return {}


@encode.register
def _read_journal_state(command: commands.ReadJournalState, keys: Keys) -> RedisCommand:
    def read(reply: bytes | None) -> str:
        return "unknown" if reply is None else reply.decode()

    return RedisCommand(("HGET", keys.journal(command.purchase), "state"), read)
