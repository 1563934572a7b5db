"""Encoders of the commands of `commands.journals` that are about the queue of an account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    microseconds,
    no_result,
    read_texts,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _take_turns(command: commands.TakeTurns, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Turns:
        taken, waiting, next_in, has_more = reply
        return commands.Turns(
            tuple(sorted(read_texts(taken))), waiting, next_in / SECOND, has_more=bool(has_more)
        )

    rates = _or_none(command.images_per_minute, command.concurrent)
    arguments = (command.account, command.worker, *rates, *command.seen)
    touched = [
        *keys.account(command.account),
        keys.slow_workers(command.account),
        keys.taken_turns(command.account, command.worker),
        keys.reserved(command.worker),
    ]
    # A topic of its own: this script also asks for journals, which the others do not need.
    topics = (f"turns {command.account}", f"queue {command.account}")
    return script_command(
        "take_turns", touched, arguments, read=read, recalls=topics, asked_often=keys.asked_often
    )


@encode.register
def _read_turns(command: commands.ReadTurns, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> Sequence[commands.Turn]:
        return [
            commands.Turn(state.decode(), position, wait / SECOND)
            for state, position, wait in reply
        ]

    rates = _or_none(command.images_per_minute, command.concurrent)
    arguments = (command.account, *rates, *command.purchases)
    touched = [
        *keys.account(command.account),
        *(keys.journal(purchase) for purchase in command.purchases),
    ]
    topic = f"queue {command.account}"
    return script_command(
        "read_turns", touched, arguments, read=read, recalls=(topic,), asked_often=keys.asked_often
    )


@encode.register
def _correct_account(command: commands.CorrectAccount, keys: Keys) -> RedisCommand:
    arguments = (
        command.account,
        *_or_none(command.images_per_minute, command.remaining),
        microseconds(command.stop_seconds),
    )
    touched = keys.account(command.account)
    return script_command("correct_account", touched, arguments, read=no_result)


def _or_none(*numbers: int | None) -> Sequence[Argument]:
    return ["" if number is None else number for number in numbers]
