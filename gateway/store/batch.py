"""Commands that share a round trip to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn

from gateway.store.protocol import Command, R, Store


class Result(Generic[R]):
    """The result of one command of a batch."""

    __slots__ = ("value",)

    value: R
    """The command's result. Raises `RuntimeError` before the batch was executed."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            # Called only while `value` is not set, so that reading it costs no call afterwards.
            if name == "value":
                raise RuntimeError("the batch was not executed")
            raise AttributeError(name)


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
        if commands:
            self._commands, self._results = [], []
            values = await self.store.execute(commands)
            for i, result in enumerate(results):
                result.value = values[i]


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
