"""Several commands in one round trip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, cast

from gateway.store.protocol import R, Store, Verb


class Handle(Generic[R]):
    """The answer to one verb of a batch, there once the batch was sent."""

    __slots__ = ("_answer", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._answer: R | None = None

    @property
    def answer(self) -> R:
        """What the store answered; an error before the batch was sent."""
        if not self._is_set:
            raise RuntimeError("the batch was not sent")
        return cast(R, self._answer)

    def set(self, answer: R) -> None:
        """Called by the batch."""
        self._answer = answer
        self._is_set = True


@dataclass(slots=True)
class Batch:
    """Verbs that travel together: rooms add, a story sends."""

    store: Store
    _asked: list[tuple[Verb[Any], Handle[Any]]] = field(default_factory=list)

    def add(self, verb: Verb[R]) -> Handle[R]:
        """Adds a verb; its handle has the answer after `send`."""
        handle: Handle[R] = Handle()
        self._asked.append((verb, handle))
        return handle

    async def send(self) -> None:
        """One round trip for all that was added since the last."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        answers = await self.store.run([verb for verb, _ in asked])
        for (_, handle), answer in zip(asked, answers, strict=True):
            handle.set(answer)


async def ask(store: Store, verb: Verb[R]) -> R:
    """One verb on its own."""
    return cast(R, (await store.run([verb]))[0])
