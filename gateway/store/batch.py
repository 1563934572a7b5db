"""Commands that share a round trip to the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from gateway.store.protocol import Command, R, Store


class Result(Generic[R]):
    """The result of one command of a batch."""

    __slots__ = ("_index", "_values")

    def __init__(self, values: Sequence[Any], index: int) -> None:
        self._values = values
        self._index = index

    @property
    def value(self) -> R:
        """The command's result. Raises `RuntimeError` before the batch was executed."""
        if not self._values:
            raise RuntimeError("the batch was not executed")
        value: R = self._values[self._index]
        return value


class Batch:
    """Commands for one round trip. They run in order; the batch as a whole is not atomic."""

    __slots__ = ("_commands", "_values", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self._commands: list[Command[Any]] = []
        self._values: list[Any] = []
        """The results of `_commands`; empty until they are executed."""

    def add(self, command: Command[R]) -> Result[R]:
        """Adds a command; its result has a value after `execute`."""
        self._commands.append(command)
        return Result(self._values, len(self._commands) - 1)

    async def execute(self) -> None:
        """Executes the commands that were added since the last time. Raises `StoreUnavailable`."""
        commands, values = self._commands, self._values
        if commands:
            self._commands, self._values = [], []
            values += await self.store.execute(commands)


async def execute_kept(store: Store, command: Command[R]) -> R:
    """As `execute`, from memory if this process has kept the result, which may be 100 ms old.

    For data that is read often and rarely changes; see `kept_reads`.
    """
    if (found := store.kept.find([command])) is not None:
        kept: R = found[0]
        return kept
    result = await execute(store, command)
    store.kept.fill([command])
    return result


async def execute(store: Store, command: Command[R]) -> R:
    """Executes one command in a round trip of its own. Raises `StoreUnavailable`."""
    result: R
    (result,) = await store.execute([command])
    return result
