"""Which function executes a command, and whether it only reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gateway.store.protocol import Command
from gateway.store.sqlite.transaction import Transaction

C = TypeVar("C")
R = TypeVar("R")

_executors: dict[type[Command[Any]], Callable[[Transaction, Any], Any]] = {}
_read_only: set[type[Command[Any]]] = set()


def reads(
    command: type[Command[R]],
) -> Callable[[Callable[[Transaction, C], R]], Callable[[Transaction, C], R]]:
    """Registers the function that executes a command without writing.

    Such commands run beside the writer, on a connection that refuses to write.
    """
    _read_only.add(command)
    return writes(command)


def writes(
    command: type[Command[R]],
) -> Callable[[Callable[[Transaction, C], R]], Callable[[Transaction, C], R]]:
    """Registers the function that executes a command which may write."""

    def register(executor: Callable[[Transaction, C], R]) -> Callable[[Transaction, C], R]:
        _executors[command] = executor
        return executor

    return register


def execute(tx: Transaction, command: Command[Any]) -> Any:
    """The result of a command. Raises `KeyError` for one that this store does not have."""
    return _executors[type(command)](tx, command)


def is_read_only(commands: Sequence[Command[Any]]) -> bool:
    """Whether none of these commands writes."""
    return all(type(command) in _read_only for command in commands)
