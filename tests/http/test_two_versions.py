"""Two versions of the gateway on one store: the older one ignores fields of the newer one.

The newer version is this one with a store that adds a field to every JSON object that it writes:
images, ledger records, journals, keys, the image index, flight events, idempotency results.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import orjson
import pytest

from gateway import assembly
from gateway.configuration.settings import Settings
from gateway.store.protocol import BlobStore, Command, Store
from gateway.wiring.stores import open_store
from tests.gateways import Client, InProcess, Upstream
from tests.http.conftest import OpenGateway
from tests.journals import leave_purchase

NEW = "added_later"
IDEMPOTENT = {"Idempotency-Key": "order-17"}


class NewerStore:
    """Adds a field to every JSON object that a command writes."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self._store = store
        self.written: set[str] = set()
        """The commands that wrote the field."""

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        return await self._store.execute([self._extended(command) for command in commands])

    def _extended(self, command: Command[Any]) -> Command[Any]:
        written: Command[Any] = extended(command)
        if written != command:
            self.written.add(type(command).__name__)
        return written


def extended(value: Any) -> Any:
    """The value, with the new field in every JSON object that it contains as bytes."""
    if isinstance(value, bytes):
        try:
            return orjson.dumps(_with_field(orjson.loads(value)))
        except orjson.JSONDecodeError:
            return value
    if type(value) is tuple:
        return tuple(extended(item) for item in value)
    if isinstance(value, dict):
        return {key: extended(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        # Bytes that a command compares with must equal those in the store.
        names = [f.name for f in fields(value) if f.name != "expected"]
        return replace(value, **{name: extended(getattr(value, name)) for name in names})
    return value


MAPS = frozenset({"limits", "tokens", "images", "headers", "echoed", "answer_fields"})
"""Objects whose keys are data, not fields."""


def _with_field(document: Any, name: str = "") -> Any:
    if isinstance(document, list):
        return [_with_field(item) for item in document]
    if not isinstance(document, dict):
        return document
    inner = {key: _with_field(item, key) for key, item in document.items()}
    return inner if name in MAPS else inner | {NEW: {"by": ["a newer version"]}}


@pytest.fixture
async def pair(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[InProcess, InProcess, NewerStore]]:
    """An older and a newer gateway on one store."""
    stores = []

    @asynccontextmanager
    async def open_newer(settings: Settings) -> AsyncIterator[tuple[Store, BlobStore]]:
        async with open_store(settings) as (store, blobs):
            stores.append(NewerStore(store))
            yield stores[-1], blobs

    async with open_gateway() as older:
        with monkeypatch.context() as patch:
            patch.setattr(assembly, "open_store", open_newer)
            newer = open_gateway()
            opened = await newer.__aenter__()
        try:
            yield older, opened, stores[0]
        finally:
            await newer.__aexit__(None, None, None)


async def test_each_version_serves_the_images_that_the_other_one_has_bought(
    pair: tuple[InProcess, InProcess, NewerStore], upstream: Upstream
) -> None:
    older, newer, store = pair
    alice = await newer.client.with_key("alice", limits={"images_per_day": 100})
    there = Client(older.client.url, older.client.session, alice.secret)
    bought = [await alice.ask("new", headers=IDEMPOTENT), await there.ask("old", n=2)]

    hits = [await there.ask("new"), await alice.ask("old", n=2)]
    repeated = await there.ask("new", headers=IDEMPOTENT)
    larger = await there.ask("new", n=2)

    assert [hit.images for hit in hits] == [reply.images for reply in bought]
    assert all(hit.cache_status.startswith("hit") for hit in hits)
    assert (repeated.images, repeated.headers["idempotent-replayed"]) == (bought[0].images, "true")
    assert larger.images[:1] == bought[0].images
    assert len(await upstream.bodies()) == 3
    for command in ("StoreImages", "Reserve", "Receive", "Settle", "SetValue", "CompareAndSet"):
        assert command in store.written


async def test_each_version_reads_the_ledger_of_both(
    pair: tuple[InProcess, InProcess, NewerStore],
) -> None:
    older, newer, _ = pair
    alice = await newer.client.with_key("alice")
    there = Client(older.client.url, older.client.session, alice.secret)
    await alice.ask("one")
    await there.ask("one")
    await there.ask("two")
    await alice.ask("two", size="none")
    await newer.gateway.ledger.write()

    for gateway in (older, newer):
        outcomes = sorted(record.outcome for record in await gateway.ledger())
        assert outcomes == ["bought", "bought", "hit", "refused"]


@pytest.mark.parametrize("received", [True, False])
async def test_each_version_finishes_the_purchases_of_the_other_one(
    pair: tuple[InProcess, InProcess, NewerStore],
    monkeypatch: pytest.MonkeyPatch,
    *,
    received: bool,
) -> None:
    older, newer, _ = pair
    alice = await newer.client.with_key("alice")

    @asynccontextmanager
    async def open_newer(settings: Settings) -> AsyncIterator[tuple[Store, BlobStore]]:
        async with open_store(settings) as (store, blobs):
            yield NewerStore(store), blobs

    await leave_purchase(newer.settings, alice.secret, "of the older", received=received)
    assert await newer.recover_expired() == 1
    monkeypatch.setattr("tests.journals.open_store", open_newer)
    await leave_purchase(newer.settings, alice.secret, "of the newer", received=received)
    assert await older.recover_expired() == 1

    outcome = "bought" if received else "failed"
    assert [record.outcome for record in await older.ledger()] == [outcome] * 2
