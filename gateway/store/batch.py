"""Commands that share a round trip to the store."""

from __future__ import annotations

from typing import Any, Final, Generic, cast

from gateway.store.protocol import Command, R, Store

_NOT_EXECUTED: Final = object()


class Result(Generic[R]):
    """The result of one command of a batch."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: Any = _NOT_EXECUTED

    @property
    def value(self) -> R:
        """The command's result. Raises `RuntimeError` before the batch was executed."""
        if self._value is _NOT_EXECUTED:
            raise RuntimeError("the batch was not executed")
        return cast(R, self._value)

    def set(self, value: R) -> None:
        """Called by the batch."""
        self._value = value


class Batch:
    """Commands for one round trip. They run in order; the batch as a whole is not atomic."""

    __slots__ = ("_commands", "_results", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self._commands: list[Command[Any]] = []
        self._results: list[Result[Any]] = []

    def add(self, command: Command[R]) -> Result[R]:
        """Adds a command; its result has a value after `execute`."""
        result: Result[R] = Result()
        self._commands.append(command)
        self._results.append(result)
        return result

    async def execute(self) -> None:
        """Executes the commands that were added since the last time. Raises `StoreUnavailable`."""
        commands, results = self._commands, self._results
        if not commands:
            return
        self._commands, self._results = [], []
        values = await self.store.execute(commands)
        for result, value in zip(results, values, strict=True):
            result.set(value)


async def execute_kept(store: Store, command: Command[R]) -> R:
    """As `execute`, from memory if this process has kept the result, which may be 100 ms old.

    For data that is read often and rarely changes; see `kept_reads`.
    """
    if (found := store.kept.find([command])) is not None:
        return cast(R, found[0])
    result = await execute(store, command)
    store.kept.fill([command])
    return result


async def execute(store: Store, command: Command[R]) -> R:
    """Executes one command in a round trip of its own. Raises `StoreUnavailable`."""
    return cast(R, (await store.execute([command]))[0])
