"""Which function executes a command, and whether it only reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gateway.store.protocol import Command
from gateway.store.sqlite.transaction import Transaction

C = TypeVar("C")
R = TypeVar("R")

_executors: dict[type[Command[Any]], Callable[[Transaction, Any], Any]] = {}
_reads: dict[type[Command[Any]], Callable[[Any], bool]] = {}
"""Whether a command of this type only reads. Any other type writes."""


def reads(
    command: type[Command[R]],
) -> Callable[[Callable[[Transaction, C], R]], Callable[[Transaction, C], R]]:
    """Registers the function that executes a command without writing.

    Such commands run beside the writer, on a connection that refuses to write.
    """
    return writes(command, unless=lambda _: True)


def writes(
    command: type[Command[R]], *, unless: Callable[[C], bool] | None = None
) -> Callable[[Callable[[Transaction, C], R]], Callable[[Transaction, C], R]]:
    """Registers the function that executes a command which may write.

    `unless` tells which commands of this type only read.
    """
    if unless is not None:
        _reads[command] = unless

    def register(executor: Callable[[Transaction, C], R]) -> Callable[[Transaction, C], R]:
        _executors[command] = executor
        return executor

    return register


def execute(tx: Transaction, command: Command[Any]) -> Any:
    """The result of a command. Raises `KeyError` for one that this store does not have."""
    return _executors[type(command)](tx, command)


def is_read_only(commands: Sequence[Command[Any]]) -> bool:
    """Whether none of these commands writes."""
    return all(type(command) in _reads and _reads[type(command)](command) for command in commands)
