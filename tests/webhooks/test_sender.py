"""Delivery of events to a real receiver: signatures, guard, back-off and bounds."""

from __future__ import annotations

import asyncio
import base64
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import openai
import pytest
from structlog.testing import capture_logs

from gateway.events import Event, Webhook
from gateway.store.protocol import Store
from gateway.store.sqlite.store import open_sqlite_store
from gateway.webhooks.outbox import KEEP_SECONDS, Outbox
from gateway.webhooks.sender import (
    MAX_ANSWER_BYTES,
    AttemptFailed,
    Sender,
    SenderSettings,
    open_http,
)
from tests.inner_server import INSIDE, names_that_lead_inside, run_inner
from tests.rows import each_row
from tests.waiting import eventually, generous
from tests.webhooks.receiver import Received, Receiver, run_receiver
from tests.webhooks.test_outbox import Clock

SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
ALLOWED = ("127.0.0.1",)

OpenSender = Callable[..., AbstractAsyncContextManager[tuple[Outbox, Sender]]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with run_receiver() as opened:
        yield opened


@pytest.fixture
async def store(sqlite_path) -> AsyncIterator[Store]:
    async with open_sqlite_store(sqlite_path) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def sending(
    store: Store,
    *webhooks: Webhook,
    clock: Clock,
    allow: Sequence[str] = ALLOWED,
    timeout_seconds: float = 5.0,
    worker: str = "worker-1",
) -> AsyncIterator[tuple[Outbox, Sender]]:
    outbox = Outbox(store, lambda: webhooks, clock=clock)
    settings = SenderSettings(allow=tuple(allow), timeout_seconds=timeout_seconds)
    async with open_http(settings) as http:
        yield (
            outbox,
            Sender(
                store,
                outbox,
                lambda: webhooks,
                http,
                worker=worker,
                timeout_seconds=timeout_seconds,
                clock=clock,
            ),
        )


def event(clock: Clock, once: str = "once", **given) -> Event:
    fields = {
        "kind": "limit_crossed",
        "until": clock.now + 3600,
        "time": clock.now,
        "text": "key:alice <!channel> & more",
        "data": {"scope": "key:alice", "threshold": 0.5},
    }
    return Event(once=once, **{**fields, **given})


async def send_all(sender: Sender, outbox: Outbox) -> None:
    """Sends until nothing is due any more; the turn of a worker ends by itself."""

    async def is_empty() -> bool:
        await sender.send()
        return not sender._due(await outbox.read())

    await eventually(is_empty)


# ── what is sent ────────────────────────────────────────────────────────────────────────────


async def test_openai_s_package_verifies_and_reads_an_event(store, receiver):
    clock = Clock(now=time.time())
    hook = Webhook(receiver.hook, secret=SECRET)
    async with sending(store, hook, clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        await sender.send()
    (received,) = receiver.requests
    client = openai.OpenAI(api_key="gk-none", webhook_secret=SECRET)
    unwrapped = client.webhooks.unwrap(received.body, received.headers)
    assert unwrapped.type == "limit_crossed"
    assert unwrapped.id == received.headers["webhook-id"]
    assert unwrapped.data.scope == "key:alice"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(received.body + b" ", received.headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(received.body, received.headers, secret="whsec_" + "AAAA" * 8)


async def test_a_chat_gets_text_without_mentions(store, receiver, clock):
    async with sending(store, Webhook(receiver.hook, "slack"), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        await sender.send()
    (received,) = receiver.requests
    assert received.json == {"text": "key:alice &lt;!channel&gt; &amp; more"}
    assert "webhook-signature" not in received.headers


@pytest.mark.parametrize("name", ["@channel", "@here", "@everyone", "@All", "@team-@online"])
async def test_no_chat_finds_a_mention_in_a_name(store, receiver, clock, name):
    """Chats that take Slack's format read `@channel` or `@everyone` in plain text."""
    async with sending(store, Webhook(receiver.hook, "slack"), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock, text=f"Top users: {name} $1.00, ann@example.com $1.00"))
        await sender.send()
    (received,) = receiver.requests
    text = received.json["text"]
    assert name.removeprefix("@team-") not in text
    assert text.replace("@\u200b", "@") == f"Top users: {name} $1.00, ann@example.com $1.00"
    assert "ann@example.com" in text


async def test_an_accepted_event_is_sent_once(store, receiver, clock):
    async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        await send_all(sender, outbox)
        clock.now += KEEP_SECONDS
        await sender.send()
        assert await outbox.read() == []
    assert len(receiver.requests) == 1


async def test_of_many_workers_one_sends_each_event(open_store, receiver, clock):
    async with open_store() as store:
        hook = Webhook(receiver.hook)
        async with (
            sending(store, hook, clock=clock, worker="1") as (outbox, first),
            sending(store, hook, clock=clock, worker="2") as (_, second),
        ):
            for number in range(5):
                await outbox.publish(event(clock, str(number)))

            async def is_empty() -> bool:
                await asyncio.gather(first.send(), second.send(), first.send(), second.send())
                return not await outbox.read()

            await eventually(is_empty)
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(ids) == len(set(ids)) == 5


# ── receivers that fail ─────────────────────────────────────────────────────────────────────


async def test_a_failed_attempt_is_repeated_with_growing_pauses_for_a_day(store, receiver, clock):
    receiver.behaviour = "fail"
    hook = Webhook(receiver.hook, secret=SECRET)
    attempts = []
    async with sending(store, hook, clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        started = clock.now
        with capture_logs() as logs:
            while entries := await outbox.read():
                before = len(receiver.requests)
                clock.now = entries[0].due_at

                async def has_tried(before: int = before) -> bool:
                    await sender.send()
                    return len(receiver.requests) > before or not await outbox.read()

                await eventually(has_tried)
                if len(receiver.requests) > before:
                    attempts.append(clock.now - started)
    pauses = [round(b - a) for a, b in itertools.pairwise(attempts)]
    assert pauses[:6] == [5, 15, 60, 300, 900, 3600]
    assert KEEP_SECONDS - 3600 <= attempts[-1] <= KEEP_SECONDS
    assert logs[-1]["event"] == "webhook_dropped"
    assert logs[-1]["reason"] == "a_day_old"
    ids = {request.headers["webhook-id"] for request in receiver.requests}
    assert len(ids) == 1
    shown = repr(logs)
    assert "a-secret-path" not in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("behaviour", "patience", "reason"),
    [("fail", 10, "status 500"), ("redirect", 10, "status 307"), ("hang", 0.2, "timeout")],
)
async def test_the_log_says_why_an_attempt_failed(
    store, receiver, clock, behaviour, patience, reason
):
    receiver.behaviour, receiver.location = behaviour, f"{receiver.url}/elsewhere"
    hook = Webhook(receiver.hook, secret=SECRET)
    async with sending(store, hook, clock=clock, timeout_seconds=patience) as (outbox, sender):
        await outbox.publish(event(clock))
        with capture_logs() as logs:
            await sender.send()
        (entry,) = await outbox.read()
    assert [(line["event"], line["reason"]) for line in logs] == [("webhook_failed", reason)]
    assert (entry.attempts, entry.due_at) == (1, clock.now + 5)
    assert len(receiver.requests) == 1


async def test_a_webhook_that_is_gone_gets_no_second_attempt(store, receiver, clock):
    receiver.behaviour = "go"
    async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        await sender.send()
        assert await outbox.read() == []


async def test_one_webhook_that_hangs_does_not_delay_the_others(store, receiver, clock):
    async with run_receiver() as hanging:
        hanging.behaviour = "hang"
        hooks = Webhook(hanging.hook), Webhook(receiver.hook)
        async with sending(store, *hooks, clock=clock, timeout_seconds=30) as (outbox, sender):
            for number in range(3):
                await outbox.publish(event(clock, str(number)))
            task = asyncio.create_task(sender.send())
            await eventually(lambda: len(receiver.requests) == 3 and len(hanging.requests) == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_while_a_webhook_hangs_other_workers_send_to_the_others(store, receiver, clock):
    async with run_receiver() as hanging:
        hanging.behaviour = "hang"
        hooks = Webhook(hanging.hook), Webhook(receiver.hook)
        async with (
            sending(store, *hooks, clock=clock, timeout_seconds=30) as (outbox, first),
            sending(store, *hooks, clock=clock, worker="worker-2") as (_, second),
        ):
            await outbox.publish(event(clock, "1"))
            task = asyncio.create_task(first.send())
            await eventually(lambda: hanging.requests and receiver.requests)
            await outbox.publish(event(clock, "2"))

            async def is_sent() -> bool:
                await second.send()
                return len(receiver.requests) == 2

            await eventually(is_sent)
            assert len(hanging.requests) == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_webhook_that_failed_rests_with_all_its_events(store, receiver, clock):
    receiver.behaviour = "fail"
    async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
        for number in range(3):
            await outbox.publish(event(clock, str(number)))
        await sender.send()
        assert len(receiver.requests) == 1
        assert await due(sender, outbox, clock, after=4.9) == 0
        assert await due(sender, outbox, clock, after=0.2) == 3


async def test_an_event_that_is_never_accepted_delays_others_by_a_minute(store, receiver, clock):
    async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock, "bad"))
        (entry,) = await outbox.read()
        for _ in range(8):
            entry = await outbox.take(entry, due_at=clock.now)
        await outbox.put_back(entry, due_at=clock.now + 3600)
        await outbox.publish(event(clock, "good"))
        assert await due(sender, outbox, clock, after=59) == 0
        assert await due(sender, outbox, clock, after=2) == 1


async def due(sender: Sender, outbox: Outbox, clock: Clock, *, after: float) -> int:
    """How many entries would be tried some time later."""
    clock.now += after
    return sum(map(len, sender._due(await outbox.read()).values()))


@pytest.mark.parametrize("behaviour", ["gigabyte", "hang_after_head"])
async def test_an_event_is_accepted_however_its_answer_ends(store, receiver, clock, behaviour):
    receiver.behaviour = behaviour
    async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        async with generous():
            await sender.send()
        assert await outbox.read() == []
    # What the sockets' buffers take was not read.
    assert receiver.sent_bytes < MAX_ANSWER_BYTES + 16 * 2**20


async def test_a_redirect_into_a_private_network_makes_no_connection(store, receiver, clock):
    async with run_inner() as inner:
        receiver.behaviour, receiver.location = "redirect", f"http://127.0.0.1:{inner.port}/"
        async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
            await outbox.publish(event(clock))
            await sender.send()
            (entry,) = await outbox.read()
            assert entry.attempts == 1
        assert inner.connections == 0


# ── the guard ───────────────────────────────────────────────────────────────────────────────


@each_row(("link", "reason"), INSIDE[:12] + INSIDE[-6:])
async def test_a_webhook_inside_is_blocked_without_a_connection(link, reason):
    async with run_inner() as inner:
        async with open_http(SenderSettings(), resolver=names_that_lead_inside()) as http:
            with pytest.raises(AttemptFailed) as caught:
                await http.post(link.replace("{port}", str(inner.port)), b"{}", {})
        expected = f"blocked: {reason}"
        assert caught.value.reason in (expected, "ClientConnectorDNSError")
        assert inner.connections == 0


async def test_a_clock_that_steps_back_delays_no_first_attempt(store, receiver, clock):
    async with sending(store, Webhook(receiver.hook), clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        clock.now -= 3600
        await sender.send()
    assert len(receiver.accepted) == 1


async def test_webhooks_of_one_url_get_requests_signed_with_their_own_secrets(
    store, receiver, clock
):
    clock = Clock(now=time.time())
    other = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    hooks = [
        Webhook(receiver.hook, secret=SECRET),
        Webhook(receiver.hook, secret=other),
        Webhook(receiver.hook, secret=other, events=frozenset({"limit_crossed"})),
    ]
    # Before the second secret was there.
    async with sending(store, hooks[0], clock=clock) as (outbox, _):
        await outbox.publish(event(clock, "before"))
    async with sending(store, *hooks, clock=clock) as (outbox, sender):
        await outbox.publish(event(clock))
        await send_all(sender, outbox)
        assert await outbox.read() == []
    verified = [
        [secret for secret in (SECRET, other) if is_signed_with(secret, received)]
        for received in receiver.requests
    ]
    assert sorted(verified) == sorted([[SECRET], [SECRET], [other]])


def is_signed_with(secret: str, received: Received) -> bool:
    client = openai.OpenAI(api_key="gk-none", webhook_secret=secret)
    try:
        client.webhooks.unwrap(received.body, received.headers)
    except openai.InvalidWebhookSignatureError:
        return False
    return True


# ── webhooks that change ────────────────────────────────────────────────────────────────────


async def test_entries_of_a_removed_webhook_are_dropped_after_some_time(store, receiver, clock):
    removed, kept = Webhook(receiver.hook), Webhook(f"{receiver.url}/kept")
    async with sending(store, removed, clock=clock) as (outbox, _):
        await outbox.publish(event(clock))
    async with sending(store, kept, clock=clock) as (outbox, sender):
        # Another worker may not have read the new file yet.
        await sender.send()
        assert len(await outbox.read()) == 1
        clock.now += 601
        await send_all(sender, outbox)
        assert await outbox.read() == []
    assert receiver.requests == []
