"""Each event arrives once: 4 workers, two restarts, and receivers that fail meanwhile.

The gateway is `gateway serve` with an `access.yaml`. The receivers are HTTP servers of the test.
"""

from __future__ import annotations

import base64
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from gateway.events import EVENT_KINDS
from gateway.images import Record
from gateway.process.bootstrap import prepare
from gateway.store.batch import execute
from gateway.store.commands import Append
from gateway.wiring.stores import open_store
from tests.catalogs import read_shipped
from tests.gateways import Client, Processes, Upstream, make_settings, open_to_each, run_processes
from tests.moved_calendar import MID_JULY
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually
from tests.webhooks.receiver import Receiver, run_receiver

WORKERS = 4
SECRET = "whsec_" + base64.b64encode(b"a secret of the receiver").decode()
MODEL = "gpt-image-1"
DEAR = {"model": MODEL, "quality": "high", "size": "1024x1536", "n": 10}
"""$2.496045 a request."""
OPTIONS = {"rehost": {"allow": ["127.0.0.1"]}}
"""The receivers are on a private address, over plain http."""
DAY = 86_400

ACCESS: dict[str, Any] = {
    "everyone": {"limits": {"usd_per_day": {"max": 9, "mode": "shadow", "warn_at": [0.9]}}},
    "teams": {"art": {"limits": {"usd_per_week": 10}}},
    "keys": [
        {
            "name": "alice",
            "secret": "the-secret-of-alice",
            "team": "art",
            "limits": {"usd_per_day": 6},
        },
        {
            "name": "bob",
            "secret": "the-secret-of-bob",
            "team": "art",
            "limits": {"usd_per_month": {"max": 4, "warn_at": [0.5]}, "images_per_day": 10},
        },
    ],
}


EXPECTED = {
    ("limit_crossed", "key:alice", "usd_per_day", 0.5),
    ("limit_crossed", "key:alice", "usd_per_day", 0.8),
    ("limit_exhausted", "key:alice", "usd_per_day", None),
    ("limit_crossed", "key:bob", "usd_per_month", 0.5),
    ("projected_over", "key:bob", "usd_per_month", None),
    ("limit_crossed", "key:bob", "images_per_day", 0.5),
    ("limit_crossed", "key:bob", "images_per_day", 0.8),
    ("limit_crossed", "key:bob", "images_per_day", 1.0),
    ("limit_exhausted", "key:bob", "images_per_day", None),
    # Without its raise, it would have used up its limit.
    ("limit_crossed", "key:dave", "usd_per_day", 0.5),
    ("limit_crossed", "team:art", "usd_per_week", 0.5),
    ("projected_over", "team:art", "usd_per_week", None),
    # In shadow mode.
    ("limit_crossed", "everyone", "usd_per_day", 0.9),
    ("limit_exhausted", "everyone", "usd_per_day", None),
    ("spike", "team:art", None, None),
    ("spike", "everyone", None, None),
    ("revoked_key_in_use", "key:carol", None, None),
    ("model_retires", f"model:{MODEL}", None, 1),
    ("weekly_digest", "team:art", None, None),
    ("asked_for_more", "key:alice", "usd_per_day", None),
}
LATE = {
    *(("limit_crossed", "key:late", "images_per_day", part) for part in (0.5, 0.8, 1.0)),
    ("limit_exhausted", "key:late", "images_per_day", None),
}


@dataclass
class Receivers:
    """A program that verifies signatures, and a chat."""

    program: Receiver
    chat: Receiver

    def told(self) -> set[tuple[Any, ...]]:
        """The events that the program has accepted, without their windows."""
        return {name[:4] for name in _names(self.program.accepted)}


@dataclass
class Keys:
    """Clients of the first start; other starts have other addresses."""

    alice: Client
    bob: Client
    carol: Client
    dave: Client


def _by_id(requests: Iterable[Any]) -> dict[str, Any]:
    """The deliveries by the event's id.

    An event is delivered again, with the same id, if its receiver was slow on a busy machine, or if
    the worker was killed before it read the answer.
    """
    return {request.headers["webhook-id"]: request for request in requests}


def _names(requests: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Kind, scope, limit, threshold and window of each request."""
    events = [request.json for request in requests]
    return [
        (
            event["type"],
            data["scope"],
            data.get("limit"),
            data.get("threshold"),
            data.get("window", {}).get("name"),
        )
        for event in events
        for data in [event["data"]]
    ]


def write_files(folder: Path, receivers: Receivers) -> None:
    """A model that retires tomorrow, and an `access.yaml`."""
    models = read_shipped()
    models["models"][MODEL]["shutdown"] = MID_JULY + timedelta(days=1)
    webhooks = [
        {"url": receivers.program.hook, "secret": "${HOOK_SECRET}"},
        {"url": receivers.chat.hook, "format": "slack"},
    ]
    (folder / "models.yaml").write_text(yaml.safe_dump(models))
    (folder / "access.yaml").write_text(yaml.safe_dump({**ACCESS, "webhooks": webhooks}))


async def spend_in_the_past(settings: Any) -> None:
    """A team that has spent a dollar on each of the last days."""
    prepare(settings)
    records = tuple(
        Record(
            id=f"req_{day}",
            request_id=f"req_{day}",
            time=time.time() - day * DAY,
            key="veteran",
            key_id="key_veteran",
            team="art",
            user="eve@example.com",
            model=MODEL,
            outcome="bought",
            images=4,
            cost_micros=1_000_000,
        ).encode()
        for day in range(1, 21)
    )
    async with open_store(settings) as (store, _):
        await execute(store, Append(records))


def as_key(client: Client, key: Client) -> Client:
    return replace(client, secret=key.secret, key_id=key.key_id)


async def make_trouble(client: Client, by_worker: list[Client]) -> Keys:
    """Brings about every kind of event that keys can bring about."""
    keys = Keys(
        replace(client, secret="the-secret-of-alice"),
        replace(client, secret="the-secret-of-bob"),
        await client.with_key("carol", team="art"),
        await client.with_key("dave", limits={"usd_per_day": 2.5}),
    )
    raised = {
        "scope": "key:dave",
        "limit": "usd_per_day",
        "amount": 2.4,
        "until": f"{MID_JULY}",
        "reason": "a launch",
    }
    assert (await client.admin("POST", "/admin/limits/raise", raised)).status == 201
    for number, name in enumerate((keys.alice, keys.alice, keys.bob, keys.dave)):
        worker = by_worker[number % len(by_worker)]
        bought = await as_key(worker, name).ask(f"otter {number}", user="ann", **DEAR)
        assert bought.status == 200, bought.body
    assert (await client.admin("DELETE", f"/admin/keys/{keys.carol.key_id}")).status == 204
    await repeat_trouble(by_worker, keys)
    return keys


async def repeat_trouble(by_worker: list[Client], keys: Keys) -> None:
    """What brings about events again, at every worker."""
    for worker in by_worker:
        assert (await as_key(worker, keys.carol).ask("a walrus")).status == 401
        assert (await as_key(worker, keys.carol).send("GET", "/v1/models")).status == 401
        alice = as_key(worker, keys.alice)
        assert (await alice.ask("one more", **DEAR)).error["code"] == "insufficient_quota"
        body = {"limit": "usd_per_day", "amount": 5, "reason": "a deadline"}
        asked = await alice.send("POST", "/v1/usage/ask-for-more", json=body)
        assert asked.json["status"] in ("sent", "already_sent"), asked.body


@asynccontextmanager
async def started(
    folder: Path, upstream: Upstream, store_url: str | None
) -> AsyncIterator[tuple[Processes, Client, list[Client]]]:
    """The gateway, a client, and a client of each worker."""
    async with AsyncExitStack() as stack:
        processes, client = await stack.enter_async_context(
            run_processes(
                folder,
                upstream.base_url,
                workers=WORKERS,
                redis_url=store_url,
                options=OPTIONS,
                module="tests.quick_gateway",
                environ={"HOOK_SECRET": SECRET},
            )
        )
        by_worker = await stack.enter_async_context(
            open_to_each(processes, client, workers=WORKERS)
        )
        yield processes, client, list(by_worker.values())


async def restart_in_trouble(
    folder: Path, upstream: Upstream, store_url: str | None, receivers: Receivers
) -> list[str]:
    """Three starts; returns what each of them logged.

    The chat accepts everything from the first start on, the program only from the third one on.
    """
    program, chat, logs = receivers.program, receivers.chat, []
    program.behaviour = "fail"
    async with started(folder, upstream, store_url) as (processes, client, by_worker):
        keys = await make_trouble(client, by_worker)
        await eventually(lambda: program.requests and len(chat.accepted) >= len(EXPECTED))
        processes.signal_parent(signal.SIGTERM)
        assert await processes.wait() == 0
        logs.append(processes.log_file.read_text())
    program.behaviour = "hang"
    program.requests.clear()
    async with started(folder, upstream, store_url) as (processes, _, by_worker):
        await repeat_trouble(by_worker, keys)
        await eventually(lambda: program.requests)  # an attempt has begun
        processes.kill_all()
        logs.append(processes.log_file.read_text())
    program.behaviour = "accept"
    async with started(folder, upstream, store_url) as (processes, client, by_worker):
        await repeat_trouble(by_worker, keys)
        await eventually(lambda: receivers.told() >= EXPECTED)
        # Keys are looked at in the order of their age: this one is the last.
        late = await client.with_key("late", limits={"images_per_day": 1})
        assert (await late.ask("a late otter", quality="low")).status == 200
        await eventually(lambda: receivers.told() >= LATE)
        await eventually(lambda: _by_id(chat.accepted).keys() >= _by_id(program.accepted).keys())
        logs.append(processes.log_file.read_text())
    return logs


@pytest.mark.timeout(180)  # it starts four workers three times
@usually_on("redis", more=TOPOLOGIES)
async def test_each_event_arrives_once_over_four_workers_and_two_restarts(
    tmp_path, upstream, store_url
):
    async with run_receiver() as program, run_receiver() as chat:
        receivers = Receivers(program, chat)
        write_files(tmp_path, receivers)
        await spend_in_the_past(
            make_settings(tmp_path / "data", upstream.base_url, store_url, **OPTIONS)
        )
        logs = await restart_in_trouble(tmp_path, upstream, store_url, receivers)
    names = _names(_by_id(program.accepted).values())
    assert {name: count for name, count in Counter(names).items() if count > 1} == {}
    assert {name[:4] for name in names} == EXPECTED | LATE
    assert {name[0] for name in names} == set(EVENT_KINDS)
    assert _by_id(chat.accepted).keys() == _by_id(program.accepted).keys()
    check_signatures(receivers)
    check_top(program)
    for log in logs:
        assert "a-secret-path" not in log
        assert SECRET not in log


def check_signatures(receivers: Receivers) -> None:
    client = openai.OpenAI(api_key="gk-none", webhook_secret=SECRET)
    ids = set()
    for received in receivers.program.accepted:
        event = client.webhooks.unwrap(received.body, received.headers)
        assert event.type in EVENT_KINDS
        ids.add(event.id)
    assert {received.headers["webhook-id"] for received in receivers.chat.accepted} == ids
    texts = {event["data"]["text"] for event in receivers.program.events}
    assert {received.json["text"] for received in receivers.chat.accepted} == texts


def check_top(program: Receiver) -> None:
    spike = next(
        received.json["data"]
        for received in program.accepted
        if received.json["type"] == "spike" and received.json["data"]["scope"] == "team:art"
    )
    # The day may have been a spike before the other key had bought something.
    assert [key["name"] for key in spike["top"]["keys"]] in (["alice"], ["alice", "bob"])
    assert [model["name"] for model in spike["top"]["models"]] == [MODEL]
    assert [user["name"] for user in spike["top"]["users"]] == ["ann"]
