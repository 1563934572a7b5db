"""The kept reads of a store that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.store.protocol import Command


class NothingKept:
    """Finds nothing, and never tells of a change."""

    def find(self, commands: Sequence[Command[Any]]) -> list[Any] | None:
        return None

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        pass

    async def find_refusal(self) -> str | None:
        return None

    def watch(self, command: Command[Any], notify: Callable[[], None]) -> None:
        pass
