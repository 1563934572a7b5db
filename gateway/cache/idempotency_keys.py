"""Replays: what an `Idempotency-Key` was answered with, so that a repetition gets the same.

A key of a caller names one question for a day. While it is being answered a *mark* says so and is
renewed; when the worker that renews it dies, the mark ends by itself and the next one who asks
starts over. Keeping a mark is a conversation with the store, so this room sends its own verbs.
What an answer is, and what a repetition costs, is `service.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.cache.entries import picture_from_dict
from gateway.errors import StoreUnavailable, UpstreamFailure
from gateway.images import Picture
from gateway.store.batch import ask
from gateway.store.commands import DropNote, Note, ReadNote
from gateway.store.protocol import Store

SPACE: Final = "idempotency"

REMEMBERED_SECONDS: Final = 86_400.0
"""How long an answer is remembered (CONTRACT §5)."""

MARK_SECONDS: Final = 15.0
"""How long a mark lives that nobody renews."""

RENEW_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.2
"""How often a repetition looks whether the first one has its answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A caller's idempotency key, and the question that it was sent with."""

    name: str
    question: str
    """The same for the same question, however it is spelled."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the key was sent with before, and what came of it."""

    question: str
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    failure: UpstreamFailure | None = None


def asked_by(key_id: str, idempotency_key: str, *, question: tuple[object, ...]) -> Asked:
    """Idempotency keys of different gateway keys have nothing to do with one another."""
    name = hashlib.sha256(orjson.dumps([key_id, idempotency_key])).hexdigest()
    return Asked(name, hashlib.sha256(orjson.dumps(question)).hexdigest())


class Replays:
    """Remembers answers by idempotency key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self, asked: Asked) -> Remembered | None:
        """What was answered before; None when it is the caller's to answer now.

        Waits while somebody else is answering it. Raises `StoreUnavailable`.
        """
        mark = orjson.dumps({"question": asked.question})
        while not await ask(self._store, Note(SPACE, asked.name, mark, MARK_SECONDS, is_new=True)):
            note = await ask(self._store, ReadNote(SPACE, asked.name))
            said = orjson.loads(note) if note is not None else {}
            if said.get("question", asked.question) != asked.question or "pictures" in said:
                return _remembered(said)
            await asyncio.sleep(LOOK_SECONDS)
        return None

    @asynccontextmanager
    async def answering(self, asked: Asked) -> AsyncIterator[None]:
        """Keeps the mark alive meanwhile; what is written next comes after its last renewal."""
        turn = asyncio.Lock()
        renewing = asyncio.create_task(self._renew(asked, turn), name="renew an idempotency mark")
        try:
            yield
        finally:
            async with turn:  # one that is given up under way might arrive after the answer
                renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, asked: Asked, turn: asyncio.Lock) -> None:
        mark = orjson.dumps({"question": asked.question})
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            async with turn:
                with suppress(StoreUnavailable):
                    await ask(self._store, Note(SPACE, asked.name, mark, MARK_SECONDS))

    async def remember(self, asked: Asked, pictures: Mapping[int, Picture]) -> None:
        """From now on a repetition is answered with these."""
        said = {"pictures": {str(slot): picture for slot, picture in pictures.items()}}
        await self._note(asked, said)

    async def remember_failure(self, asked: Asked, failure: UpstreamFailure) -> None:
        """From now on a repetition is answered with this: it was, or may have been, paid for."""
        await self._note(asked, {"pictures": {}, "failure": failure.to_dict()})

    async def forget(self, asked: Asked) -> None:
        """Nothing was paid for: a repetition tries again."""
        with suppress(StoreUnavailable):
            await ask(self._store, DropNote(SPACE, asked.name))

    async def _note(self, asked: Asked, said: Mapping[str, Any]) -> None:
        """Should the store be away, the picture is in its entry all the same, or will be."""
        note = orjson.dumps({"question": asked.question, **said}, default=dict)
        with suppress(StoreUnavailable):
            await ask(self._store, Note(SPACE, asked.name, note, REMEMBERED_SECONDS))


def _remembered(said: Mapping[str, Any]) -> Remembered:
    failure = said.get("failure")
    return Remembered(
        said["question"],
        pictures={int(n): picture_from_dict(p) for n, p in said.get("pictures", {}).items()},
        failure=UpstreamFailure.from_dict(failure) if failure else None,
    )
