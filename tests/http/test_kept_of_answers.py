"""What is kept of upstream's answer beside the image: a list, on which nothing names the buyer.

Upstream repeats who bought at every place of its answers: in names and values, at any depth.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.access.policy import Policy, parse_policy
from gateway.cache.entries import decode_image, encode_image
from gateway.images import Image
from gateway.simulator.drawing import draw_image
from tests.catalogs import read_shipped
from tests.gateways import (
    MODEL,
    Client,
    InProcess,
    PolicyFile,
    Reply,
    leases_at,
    make_settings,
    run_gateway,
)
from tests.http.hostile import PNG, Hostile, run_hostile, stored
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("redis")

SENT = "id-of-the-buyer-4f7a1c"
"""The `safety_identifier` of the request that buys."""
MADE = "hash-of-the-buyer-9be2d0"
"""What upstream makes of it: the gateway cannot know it."""

COMPLETED, PARTIAL = "image_generation.completed", "image_generation.partial_image"
GOOD = {"b64_json": base64.b64encode(PNG).decode()}
ECHOES = {"size": "1024x1024", "quality": "high", "background": "opaque", "output_format": "png"}
USAGE = {
    "input_tokens": 9,
    "output_tokens": 50,
    "total_tokens": 59,
    "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
}
SLOW = {"heartbeat": "60s", "dead_after": "120s"}
QUICK = {"heartbeat": "0.1s", "dead_after": "0.3s"}

NAMING: dict[str, Any] = {
    "user": SENT,
    "safety_identifier": MADE,
    "end_user": {"id": SENT, "of": [{"hash": MADE}]},
    "metadata": [MADE, [SENT]],
    "seed": MADE,
    SENT: 1,
    MADE: {MADE: None},
}
"""Fields that name the buyer."""


def naming(fields: dict[str, Any]) -> dict[str, Any]:
    """An object with the fields, among others that name the buyer."""
    return {**NAMING, **fields}


def answer(**fields: Any) -> dict[str, Any]:
    usage = naming(USAGE | {"input_tokens_details": naming(USAGE["input_tokens_details"])})
    return naming({"created": 1, **ECHOES, "usage": usage, "data": [naming(GOOD)], **fields})


def completed(**fields: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETED, naming({**GOOD, **ECHOES, "usage": naming(USAGE), **fields})


def partial_image(**fields: Any) -> tuple[str, dict[str, Any]]:
    return PARTIAL, naming({**GOOD, **ECHOES, "partial_image_index": 0, **fields})


def names_buyer(text: str) -> bool:
    return SENT in text or MADE in text


def shown(reply: Reply) -> str:
    return f"{dict(reply.headers)}{reply.body.decode()}"


def events(reply: Reply) -> list[dict[str, Any]]:
    frames = reply.body.decode().split("\n\n")
    return [json.loads(frame.partition("data: ")[2]) for frame in frames if "data: " in frame]


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    async with run_hostile() as opened:
        yield opened


@pytest.fixture
def opens(hostile: Hostile, tmp_path: Path, store_url: str | None) -> Callable[..., Any]:
    """Opens gateways that share one store."""

    def open_one(policy: PolicyFile | None = None, **sections: Any) -> Any:
        settings = make_settings(tmp_path / "data", hostile.base_url, store_url, **sections)
        return run_gateway(settings) if policy is None else run_gateway(settings, policy=policy)

    return open_one


@pytest.fixture
async def gateway(opens: Callable[..., Any]) -> AsyncIterator[InProcess]:
    async with opens() as opened:
        yield opened


@pytest.fixture
async def alice(gateway: InProcess) -> Client:
    return await gateway.client.with_key("alice")


@pytest.fixture
async def bob(gateway: InProcess) -> Client:
    return await gateway.client.with_key("bob")


# ── plain answers and streams ───────────────────────────────────────────────────────────────


async def test_a_plain_answer_names_its_buyer_nowhere(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    """Neither to the buyer, nor in a hit, a replay, a streamed hit, nor in the store."""
    hostile.will_answer(answer())
    once = {"Idempotency-Key": "once"}
    bought = await alice.ask(safety_identifier=SENT, headers=once)
    replies = [
        bought,
        await alice.ask(safety_identifier="another", headers=once),
        await bob.ask(),
        await bob.ask(stream=True, partial_images=2),
        await bob.ask(n=1, headers={"Idempotency-Key": "free"}),
    ]
    assert [reply.status for reply in replies] == [200] * 5
    assert replies[1].headers["idempotent-replayed"] == "true"
    assert [body["safety_identifier"] for body in hostile.bodies] == [SENT]
    for reply in replies:
        assert not names_buyer(shown(reply))
    assert bought.json.keys() == {"created", "data", "usage", *ECHOES}
    assert bought.json["data"] == [GOOD]
    assert bought.json["usage"] == USAGE
    assert not names_buyer(await stored(gateway))


async def test_followers_and_late_joiners_of_a_stream_do_not_learn_its_buyer(
    gateway: InProcess,
    alice: Client,
    bob: Client,
    hostile: Hostile,
    opens: Callable[..., Any],
) -> None:
    """Neither in the leader's worker nor in another one; the live events are made anew."""
    hostile.will_stream(partial_image(), ("unknown", NAMING), completed())
    hostile.gate.clear()
    hostile.pauses = True
    streamed = {"stream": True, "partial_images": 1}
    async with opens() as other:
        elsewhere = Client(other.client.url, other.client.session, bob.secret, bob.key_id)
        leases = leases_at(gateway, other)
        leading = asyncio.create_task(alice.ask(safety_identifier=SENT, **streamed))
        await eventually(lambda: hostile.bodies)
        following = [asyncio.create_task(c.ask(**streamed)) for c in (bob, elsewhere)]
        await leases.until(3)
        hostile.gate.set()
        channels = gateway.gateway.flights._partial_images._channels
        await eventually(lambda: any(c.partial_images for c in channels.values()))
        following += [asyncio.create_task(c.ask(**streamed)) for c in (bob, elsewhere)]
        following += [asyncio.create_task(bob.ask())]
        await leases.until(6)
        partials = await stored(gateway)
        hostile.resume.set()
        replies = await asyncio.gather(leading, *following)
        hit = await elsewhere.ask(stream=True)

    assert len(hostile.bodies) == 1
    assert [reply.status for reply in replies] == [200] * 6
    for reply in (*replies, hit):
        assert not names_buyer(shown(reply))
    for reply in replies[:5]:
        assert [event["type"] for event in events(reply)] == [PARTIAL, COMPLETED]
        fields = {"type", "b64_json", "created_at", *ECHOES}
        assert events(reply)[0].keys() == fields | {"partial_image_index"}
        assert events(reply)[1].keys() == fields | {"usage"}
    assert not names_buyer(partials)
    assert not names_buyer(await stored(gateway))


@pytest.mark.parametrize("code", ["moderation_blocked", "rate_limit_exceeded", "400", MADE])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_error_names_its_buyer_to_nobody_else(
    gateway: InProcess,
    alice: Client,
    bob: Client,
    hostile: Hostile,
    code: str,
    is_streamed: bool,
) -> None:
    """Neither to followers, nor to later requests, nor in the store."""
    details = naming({"moderation_stage": "input", "categories": ["sexual", "self-harm/intent"]})
    words = {"message": f"Refused {SENT}.", "type": MADE, "code": code, "param": SENT}
    error = naming(words | {"moderation_details": details})
    if is_streamed:
        hostile.will_stream((COMPLETED, naming({"error": error})))
    else:
        hostile.will_answer(naming({"error": error}), 400)
    hostile.gate.clear()
    body: dict[str, Any] = {"stream": is_streamed}
    leading = asyncio.create_task(alice.ask(safety_identifier=SENT, user="ann", **body))
    await eventually(lambda: hostile.bodies)
    following = asyncio.create_task(bob.ask(**body))
    await gateway.until_leased(2)
    hostile.gate.set()
    _, followed = await asyncio.gather(leading, following)

    assert not names_buyer(shown(followed))
    if code == "moderation_blocked":
        later = await bob.ask()
        kept = {"moderation_stage": "input", "categories": ["sexual", "self-harm/intent"]}
        assert later.error["moderation_details"] == kept
        assert not names_buyer(shown(later))
    assert len(hostile.bodies) == 1
    if code != MADE:  # which is the `error` of the buyer's own ledger record
        assert not names_buyer(await stored(gateway))


@pytest.mark.parametrize(
    "details",
    [
        {"moderation_stage": MADE, "categories": [MADE]},
        {"moderation_stage": {"user": MADE}, "categories": {"user": MADE}},
        {"moderation_stage": ["input"], "categories": [{"user": MADE}, "sexual"]},
        {"moderation_stage": "input " * 20, "categories": "sexual"},
        [MADE],
        MADE,
    ],
)
async def test_moderation_details_are_plain_words_for_others(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile, details: object
) -> None:
    error = {"message": "Refused.", "code": "moderation_blocked", "moderation_details": details}
    hostile.will_answer({"error": error}, 400)
    own, later = await alice.ask(safety_identifier=SENT), await bob.ask()
    assert own.error["moderation_details"] == details
    assert "moderation_details" not in later.error
    assert MADE not in await stored(gateway)


async def test_a_late_answer_names_its_buyer_nowhere(
    opens: Callable[..., Any], hostile: Hostile
) -> None:
    """It arrives after another worker has settled the purchase of a worker that seemed dead."""
    hostile.will_answer(answer())
    hostile.gate.clear()
    async with opens(workers=SLOW) as presumed_dead:
        alice = await presumed_dead.client.with_key("alice")
        async with opens(workers=QUICK) as recoverer:
            asking = asyncio.create_task(alice.ask(safety_identifier=SENT))
            await eventually(recoverer.ledger)
            hostile.gate.set()
            late = await asking
            await presumed_dead.gateway.tasks.drain()
            bob = await recoverer.client.with_key("bob")
            hit = await bob.ask()
            everything = await stored(recoverer)
    assert (late.status, hit.cache_status[:3]) == (200, "hit")
    assert not names_buyer(shown(late) + shown(hit) + everything)


async def test_the_journal_of_a_received_image_does_not_name_its_buyer(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """A large image is received before it is settled, and its journal stays for days."""
    noise = draw_image("noise", width=640, height=640, format="png", seed=3)
    large = noise[:-12] + b"".join(
        [len(junk := bytes(300_000)).to_bytes(4, "big"), b"juNk", junk, _crc(b"juNk" + junk)]
    )
    large += noise[-12:]
    encoded = base64.b64encode(large).decode()
    hostile.will_answer(answer(data=[naming({"b64_json": encoded})]))
    bought = await alice.ask(safety_identifier=SENT)
    assert (bought.status, bought.images) == (200, [encoded])
    assert not names_buyer(await stored(gateway))


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


async def test_an_image_of_an_older_gateway_does_not_name_its_buyer() -> None:
    """It stored all further keys of an image as `extra`."""
    image = Image("1" * 24, "d", format="jpeg", width=1, height=1, size_bytes=1, created_at=0.0)
    old = json.loads(encode_image(image)) | {"extra": NAMING}
    del old["answer_fields"]
    read = decode_image(json.dumps(old).encode())
    assert read == image
    assert not names_buyer(encode_image(read).decode())


# ── any answer ──────────────────────────────────────────────────────────────────────────────


def anything(random_: random.Random, depth: int = 4) -> Any:
    """A JSON value full of names of the buyer."""
    leaves = [SENT, MADE, f"for {SENT}", None, True, 7, -1.5, "", MADE.encode().hex()]
    kind = random_.randrange(3) if depth else 0
    if kind == 0:
        return random_.choice(leaves)
    items = [anything(random_, depth - 1) for _ in range(random_.randrange(4))]
    if kind == 1:
        return items
    keys = [SENT, MADE, "user", "safety_identifier", "data", "error", "usage", "url", "size", "x"]
    return {random_.choice(keys): item for item in items}


def scrambled(document: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """The document with other values for some of its keys, and with more keys, at any depth."""
    changed = dict(document)
    for key in random_.sample(sorted({*document, *ECHOES, "revised_prompt", *NAMING}), 5):
        # Text that quotes the buyer is redacted only where it is known, so it is none here.
        if key not in ("data", "b64_json", "error", "revised_prompt", "type", "url"):
            changed[key] = anything(random_)
    items = list(changed.items())
    random_.shuffle(items)
    return dict(items)


def seeds(count: int) -> Iterator[random.Random]:
    yield from map(random.Random, range(count))


async def test_whatever_upstream_answers_the_buyer_is_named_nowhere(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    """Random answers and streams with the buyer in place of any value."""
    for number, random_ in enumerate(seeds(40)):
        prompt, is_streamed = f"otter {number}", number % 2 == 1
        if is_streamed:
            others = [
                (PARTIAL, scrambled(partial_image()[1], random_)),
                (MADE, {"x": anything(random_)}),
            ]
            hostile.will_stream(
                *random_.sample(others, random_.randrange(3)),
                (COMPLETED, scrambled(completed()[1], random_)),
            )
        else:
            image = scrambled(answer()["data"][0], random_)
            hostile.will_answer(scrambled(answer(data=[image, anything(random_)]), random_))
        body = {"safety_identifier": SENT, "stream": is_streamed, "partial_images": 1}
        bought = await alice.ask(prompt, **body)
        hit = await bob.ask(prompt, stream=not is_streamed)
        assert (bought.status, hit.cache_status[:3]) == (200, "hit"), shown(bought)
        assert not names_buyer(shown(bought)), number
        assert not names_buyer(shown(hit)), number
    assert not names_buyer(await stored(gateway))


# ── the model's list ────────────────────────────────────────────────────────────────────────


class Listing(PolicyFile):
    """The shipped policy, in which a model lists further fields."""

    def read_policy(self) -> Policy:
        table = read_shipped()
        table["models"][MODEL]["answer_fields"] = ["seed", "engine", "is_safe", "cost"]
        return parse_policy(table, file="models.yaml")


async def test_fields_that_the_model_lists_are_kept(
    opens: Callable[..., Any], hostile: Hostile
) -> None:
    fields = {"seed": 7, "engine": "pond-2", "is_safe": True, "cost": 0.5}
    async with opens(policy=Listing(Path())) as gateway:
        alice = await gateway.client.with_key("alice")
        hostile.will_answer(answer(data=[naming(GOOD | fields)]))
        replies = [await alice.ask(safety_identifier=SENT), await alice.ask()]
        hostile.will_stream(completed(**fields))
        streamed = {"stream": True, "safety_identifier": SENT}
        replies += [await alice.ask("two", **streamed), await alice.ask("two", stream=True)]
        everything = await stored(gateway)
    assert [reply.json["data"] for reply in replies[:2]] == [[{**GOOD, **fields}]] * 2
    for reply in replies[2:]:
        assert events(reply)[0].items() >= fields.items()
    assert not names_buyer("".join(map(shown, replies)) + everything)


@pytest.mark.parametrize("value", [SENT, f"for {SENT}", [7], {"id": 7}, None, "x" * 129], ids=str)
async def test_a_listed_field_that_is_no_short_value_or_names_the_buyer_is_not_kept(
    opens: Callable[..., Any], hostile: Hostile, value: object
) -> None:
    async with opens(policy=Listing(Path())) as gateway:
        alice = await gateway.client.with_key("alice")
        hostile.will_answer(answer(data=[{**GOOD, "seed": value, "engine": "pond-2"}]))
        reply = await alice.ask(safety_identifier=SENT)
    assert reply.json["data"] == [{**GOOD, "engine": "pond-2"}]


# ── the request's own parameter ─────────────────────────────────────────────────────────────


async def test_a_safety_identifier_is_forwarded_and_is_no_part_of_the_image(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    """It shares entry and idempotency key with a request without it, and is stored nowhere."""
    hostile.will_answer(answer())
    key = {"Idempotency-Key": "one"}
    first = await alice.ask(safety_identifier=SENT, headers=key)
    replayed = await alice.ask(safety_identifier="another", headers=key)
    hit = await bob.ask(safety_identifier="of-bob")
    dry = await bob.ask(safety_identifier=SENT, headers={"Prefer": "dry-run"})
    records = await gateway.ledger()
    assert [body["safety_identifier"] for body in hostile.bodies] == [SENT]
    assert first.headers["x-gateway-image-ids"] == hit.headers["x-gateway-image-ids"]
    assert replayed.headers["idempotent-replayed"] == "true"
    assert dry.json["hit"] is True
    assert {record.user for record in records} == {None}
    assert not names_buyer(await stored(gateway))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"User '{SENT[:14]}...' is blocked.", "User '***...' is blocked."),
        (f"No images for {SENT[:9]}… and {SENT}", "No images for ***… and ***"),
        (f"No images for {SENT[:20]}", "No images for ***"),
        (f"No images for '{SENT[:20].upper()}').", "No images for '***')."),
        ("No images for id-of-a.", "No images for id-of-a."),
    ],
)
async def test_a_part_of_a_name_before_a_cut_is_redacted_for_others(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile, message: str, shown: str
) -> None:
    """And for the operator. A service may quote no more than so many characters."""
    error = {"message": message, "code": "moderation_blocked"}
    hostile.will_answer({"error": error}, 400)
    with capture_logs() as logs:
        own = await alice.ask(safety_identifier=SENT)
    other = await bob.ask()
    (line,) = [line for line in logs if line["event"] == "upstream_failed"]
    assert (own.error["message"], other.error["message"], line["message"]) == (
        message,
        shown,
        shown,
    )


async def test_a_code_that_names_the_buyer_is_not_logged(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    hostile.will_answer({"error": {"message": "No.", "code": SENT}}, 400)
    with capture_logs() as logs:
        await alice.ask(safety_identifier=SENT)
    assert not names_buyer(str(logs))


async def test_a_safety_identifier_is_redacted_in_errors_and_revised_prompts_of_others(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    model = {"model": "dall-e-3", "response_format": "b64_json"}
    hostile.will_answer({"data": [{**GOOD, "revised_prompt": f"An otter for {SENT}, seated"}]})
    await alice.ask(safety_identifier=SENT, **model)
    hit = await bob.ask(**model)
    assert hit.json["data"][0]["revised_prompt"] == "An otter for ***, seated"
    error = {"message": f"No images for '{SENT}'.", "code": "content_policy_violation"}
    hostile.will_answer({"error": error}, 400)
    own = await alice.ask("refused", safety_identifier=SENT, user="ann", **model)
    other = await bob.ask("refused", **model)
    assert own.error["message"] == f"No images for '{SENT}'."
    assert other.error["message"] == "No images for '***'."


async def test_any_json_is_forwarded_as_safety_identifier_by_lenient_validation_alone(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    hostile.will_answer(answer())
    lenient = await gateway.client.with_key("lenient", validation="lenient")
    for value in ({"id": SENT}, [7, None], 10**30, True):
        refused = await alice.ask("odd", safety_identifier=value)
        assert (refused.status, refused.error["param"]) == (400, "safety_identifier")
        assert "'safety_identifier' is forwarded as given" in refused.headers["x-gateway-hint"]
        headers = {"Cache-Control": "no-cache"}
        assert (await lenient.ask("odd", safety_identifier=value, headers=headers)).status == 200
        assert hostile.bodies[-1]["safety_identifier"] == value
