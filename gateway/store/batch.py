"""Commands that share a round trip to the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, cast

from gateway.store.protocol import Command, R, Store


class Result(Generic[R]):
    """The result of one command of a batch."""

    __slots__ = ("_is_set", "_value")

    def __init__(self) -> None:
        self._is_set = False
        self._value: R | None = None

    @property
    def value(self) -> R:
        """The command's result. Raises `RuntimeError` before the batch was executed."""
        if not self._is_set:
            raise RuntimeError("the batch was not executed")
        return cast(R, self._value)

    def set(self, value: R) -> None:
        """Called by the batch."""
        self._value = value
        self._is_set = True


@dataclass(slots=True)
class Batch:
    """Commands for one round trip. They run in order; the batch as a whole is not atomic."""

    store: Store
    _pending: list[tuple[Command[Any], Result[Any]]] = field(default_factory=list)

    def add(self, command: Command[R]) -> Result[R]:
        """Adds a command; its result has a value after `execute`."""
        result: Result[R] = Result()
        self._pending.append((command, result))
        return result

    async def execute(self) -> None:
        """Executes the commands that were added since the last time. Raises `StoreUnavailable`."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = await self.store.execute([command for command, _ in pending])
        for (_, result), value in zip(pending, values, strict=True):
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
