"""What upstream repeats of a request: the gateway's secrets, and the buyer's `user`.

Secrets reach neither clients nor the store nor the log. The name of a buyer reaches no other key.
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import pytest_asyncio

from tests.gateways import Client, InProcess, leases_at, make_settings, run_gateway
from tests.http.hostile import PNG, Hostile, run_hostile, stored
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("redis")

KEY = "sk-proj-Ab3d/E0g+Hi4jKl5mNo6pQr7sTu8vWx9yZ0aBc1"
ORGANIZATION = "org-of-the-team"
PASSWORD = "proxy-Pass_word"
BASIC = base64.b64encode(b"gateway:basic-Pass_word").decode()

GOOD = {"b64_json": base64.b64encode(PNG).decode()}
ASK = {"model": "dall-e-2", "response_format": "b64_json"}
COMPLETED = "image_generation.completed"


def escaped(text: str, form: str) -> str:
    return "".join(form.format(ord(character)) for character in text)


FORMS = {
    "as it is": KEY,
    "with its scheme": f"Bearer {KEY}",
    "in capitals": KEY.upper(),
    "in small letters": KEY.lower(),
    "escaped for JSON": escaped(KEY, "\\u{:04x}"),
    "escaped for JSON, in capitals": escaped(KEY, "\\u{:04X}"),
    "escaped twice": escaped(KEY, "\\\\u{:04x}"),
    "escaped for JavaScript": escaped(KEY, "\\x{:02x}"),
    "with escaped slashes": KEY.replace("/", "\\/"),
    "partly escaped": KEY.replace("d", "\\u0064").replace("5", "%35"),
    "in a URL": quote(KEY, safe=""),
    "percent-encoded": escaped(KEY, "%{:02x}"),
    "percent-encoded twice": escaped(KEY, "%25{:02X}"),
    "in HTML": html.escape(escaped(KEY, "&#{};")),
    "in HTML, hexadecimal": escaped(KEY, "&#x{:X};"),
    "hexadecimal": KEY.encode().hex(),
    "in base64": base64.b64encode(KEY.encode()).decode(),
    "as credentials": base64.b64encode(f":{KEY}".encode()).decode(),
    "as credentials of a user": base64.b64encode(f"me:{KEY}".encode()).decode(),
    "in base64 for URLs": base64.urlsafe_b64encode(f"a:{KEY}?".encode()).decode(),
    "in JSON in JSON": json.dumps(json.dumps({"authorization": KEY})),
    "without its end": KEY[:-8],
    "without its beginning": f"...{KEY[8:]}",
    "a header's value": ORGANIZATION,
    "the proxy's password": PASSWORD,
    "the proxy's credentials": base64.b64encode(f"user:{PASSWORD}".encode()).decode(),
    "credentials in a header": BASIC,
    "the password in a header": "basic-Pass_word",
    "a cookie in a header": "cookie-Pass_word",
}


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    async with run_hostile() as opened:
        yield opened


@pytest.fixture
async def gateway(
    hostile: Hostile, tmp_path: Path, store_url: str | None
) -> AsyncIterator[InProcess]:
    settings = make_settings(
        tmp_path / "data", hostile.base_url, store_url, upstream={"api_key": KEY}
    )
    async with run_gateway(settings) as opened:
        yield opened


@dataclass(frozen=True)
class Behind:
    """A gateway that sends purchases through a proxy: `hostile` answers those as well."""

    gateway: InProcess
    hostile: Hostile
    alice: Client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Behind]:
    """For all forms of secrets; each has prompts of its own."""
    async with run_hostile() as hostile, run_behind(hostile, tmp_path_factory.mktemp("b")) as found:
        found.stop_time()  # retries need not wait
        yield Behind(found, hostile, await found.client.with_key())


def run_behind(hostile: Hostile, folder: Path) -> AbstractAsyncContextManager[InProcess]:
    upstream = {
        "breaker": {"failures": 0},
        "api_key": KEY,
        "headers": {
            "OpenAI-Organization": ORGANIZATION,
            "X-Auth": f"Basic {BASIC}",
            "Cookie": "a=b; session=cookie-Pass_word",
        },
        "proxy": f"http://user:{PASSWORD}@{hostile.root.removeprefix('http://')}",
        "base_url": "http://images.example/v1",
    }
    return run_gateway(make_settings(folder, hostile.base_url, upstream=upstream))


@pytest.fixture
async def alice(gateway: InProcess) -> Client:
    return await gateway.client.with_key("alice")


@pytest.fixture
async def bob(gateway: InProcess) -> Client:
    return await gateway.client.with_key("bob")


# ── the gateway's secrets ───────────────────────────────────────────────────────────────────


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", FORMS)
async def test_no_form_of_a_secret_is_relayed_stored_or_logged(
    behind: Behind, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is quoted: in an image's text, in an error, in a stream, as a key, in headers."""
    alice, hostile, form = behind.alice, behind.hostile, FORMS[name]
    otter = f"an otter, {name}"
    quoted = f"You sent {form}, did you?"
    texts = {"note": quoted, quoted: 1, "deep": [{quoted: [quoted]}]}
    error = {**dict.fromkeys(("message", "type", "param", "code"), quoted), **texts}
    image = {**GOOD, "revised_prompt": quoted, **texts}
    replies = []

    hostile.will_answer(
        {"data": [image], "size": form, "quality": form, "background": form, "output_format": form},
        X_Request_Id=form,
    )
    replies += [await alice.ask(otter, **ASK), await alice.ask(otter, **ASK)]
    hostile.will_stream((COMPLETED, {**image, "size": form}))
    replies += [await alice.ask(f"{otter}, a stream", model="gpt-image-2", stream=True)]
    refusal = {**error, "code": "moderation_blocked", "moderation_details": texts}
    hostile.will_answer({"error": refusal}, 400)
    replies += [await alice.ask(f"{otter}, refused", **ASK) for _ in range(2)]
    for status in (400, 404, 429, 500):
        hostile.will_answer({"error": error}, status, X_Request_Id=form, Retry_After=form)
        replies.append(await alice.ask(f"{otter}, status {status}", **ASK))
    for document in ({"error": quoted}, {"message": quoted}, {"detail": quoted}):
        hostile.will_answer(document, 400)
        replies.append(await alice.ask(f"{otter}, {list(document)}", **ASK))
    hostile.will_answer(f"<p>{quoted}</p>".encode(), 500, Content_Type="text/html")
    replies.append(await alice.ask(f"{otter}, a page", **ASK))
    hostile.will_stream(("error", {"error": error}))
    replies.append(await alice.ask(f"{otter}, in a stream", model="gpt-image-2", stream=True))
    hostile.will_answer(
        {"data": [{"url": f"https://{form.rsplit(maxsplit=1)[-1].strip('.=')}.example/"}]}
    )
    replies.append(await alice.ask(f"{otter}, a link", model="dall-e-2"))

    assert [reply.status for reply in replies[:5]] == [200, 200, 200, 400, 400]
    seen = [f"{reply.headers}{reply.body.decode()}" for reply in replies]
    logged = capsys.readouterr().out
    assert logged.count("request_answered") == len(replies)
    for text in (*seen, await stored(behind.gateway), logged):
        assert form not in text
        small = text.lower()
        for secret in (KEY, ORGANIZATION, PASSWORD, BASIC, "basic-Pass_word"):
            assert secret.lower() not in small


async def test_the_raw_escapes_of_json_hide_no_secret(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """Strings are redacted after they are parsed."""
    raw = escaped(KEY, "\\u{:04x}").encode()
    slashed = KEY.replace("/", "\\/").encode()
    hostile.will_answer(b'{"error":{"message":"%s","code":"%s"}}' % (raw, slashed), 400)
    refused = await alice.ask(**ASK)
    data = json.dumps(GOOD).encode()[:-1]
    hostile.will_answer(b'{"data":[%s,"revised_prompt":"%s, %s"}]}' % (data, raw, slashed))
    bought = await alice.ask(**ASK)
    assert (refused.error["message"], refused.error["code"]) == ("***", "***")
    assert bought.json["data"][0]["revised_prompt"] == "***, ***"
    assert KEY not in await stored(gateway)


async def test_a_masked_key_stays_readable(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """It tells the operator which key was used."""
    message = f"Key {KEY[:8]}***{KEY[-4:]} has no credit."
    hostile.will_answer({"error": {"message": message, "code": "c"}}, 402)
    assert (await alice.ask(**ASK)).error["message"] == message


@pytest.mark.parametrize("key", ["a", "abc", "the", "otter", "sk-1234"])
async def test_a_short_key_leaves_other_text_as_it_is(
    hostile: Hostile, tmp_path: Path, key: str
) -> None:
    settings = make_settings(tmp_path, hostile.base_url, upstream={"api_key": key})
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key()
        text = "sk-12345 otters and abcdef gather there at a seaside"
        hostile.will_answer({"data": [{**GOOD, "revised_prompt": text}]})
        bought = await alice.ask(**ASK)
        hostile.will_answer({"error": {"message": f"No key {key} here", "code": "c"}}, 400)
        refused = await alice.ask("another", **ASK)
    assert bought.json["data"][0]["revised_prompt"] == text
    shown = "***" if len(key) >= 4 else key
    assert refused.error["message"] == f"No key {shown} here"


async def test_a_link_that_quotes_a_secret_is_fetched_as_it_is(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """Upstream has the key, and the link may be useless without it. It is never shown."""
    hostile.will_answer({"data": [{"url": f"{hostile.root}/i?key={KEY}"}]})
    reply = await alice.ask(model="dall-e-2")
    assert reply.status == 200
    assert hostile.fetches == [f"/i?key={KEY}"]
    assert KEY not in reply.body.decode() + await stored(gateway)


# ── the buyer's name ────────────────────────────────────────────────────────────────────────

USERS: dict[str, Any] = {
    "an address": "ann@images.example",
    "an id": "user-7f3a9c1e5b",
    "a name": "annabelle",
    "a short name": "ann",
    "one letter": "q",
    "a number as text": "4711",
    "long": "ann-" * 100,
    "many words": "Ann Example of the art department",
    "not ASCII": "Änne Müller-Łódź",
}


def refusal(user: str, form: str) -> dict[str, Any]:
    quoted = {
        "plain": user,
        "JSON": json.dumps(json.dumps(user)),
        "escaped": escaped(user, "\\u{:04x}"),
        "percent": quote(user),
        "form": quote_plus(user),
        "HTML": html.escape(user).replace(" ", "&nbsp;"),
    }[form]
    return {
        "message": f"User {quoted} was refused.",
        "type": f"user_error:{quoted}",
        "param": quoted,
        "code": "moderation_blocked",
        "user": quoted,
        "safety_identifier": quoted,
        "note": [{quoted: quoted}],
        "moderation_details": {
            "moderation_stage": "input",
            "categories": ["sexual"],
            "user": quoted,
        },
    }


def names(user: str, text: str) -> bool:
    """Whether a text has the user, in any of the forms above."""
    forms = (
        user,
        json.dumps(user)[1:-1],
        escaped(user, "\\u{:04x}"),
        quote(user),
        quote_plus(user),
    )
    text = text.replace("&nbsp;", " ")
    words = text.replace('"', " ").split() if len(user) < 4 else [text]
    return any(form in words if len(user) < 4 else form in text for form in forms)


@pytest.mark.parametrize(
    "form",
    [
        *("plain", "escaped", "percent"),
        *(pytest.param(form, marks=pytest.mark.long) for form in ("JSON", "form", "HTML")),
    ],
)
async def test_a_remembered_refusal_does_not_name_its_buyer_to_other_keys(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile, form: str
) -> None:
    for number, user in enumerate(USERS.values()):
        hostile.will_answer({"error": refusal(user, form)}, 400)
        ask = {"prompt": f"otter {number}", **ASK}
        own = await alice.ask(user=user, **ask)
        later = [await bob.ask(**ask), await bob.ask(headers={"Cache-Control": "no-cache"}, **ask)]

        assert len(hostile.bodies) == number + 1
        assert own.error["message"] == refusal(user, form)["message"]
        assert own.error["user"] == refusal(user, form)["user"]
        for reply in later:
            assert (reply.status, reply.error["code"]) == (400, "moderation_blocked")
            assert reply.error["moderation_details"] == {
                "moderation_stage": "input",
                "categories": ["sexual"],
            }
            assert set(reply.error) == {"message", "type", "param", "code", "moderation_details"}
            assert not any(names(user, str(value)) for value in reply.error.values()), user


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_a_follower_does_not_learn_the_leaders_user(
    gateway: InProcess,
    alice: Client,
    bob: Client,
    hostile: Hostile,
    tmp_path: Path,
    store_url: str | None,
    status: int,
) -> None:
    """Neither in the leader's worker nor in another one."""
    settings = make_settings(
        tmp_path / "data", hostile.base_url, store_url, upstream={"api_key": KEY}
    )
    async with run_gateway(settings) as other:
        elsewhere = Client(other.client.url, other.client.session, bob.secret, bob.key_id)
        for number, user in enumerate(("user-7f3a9c1e5b", "ann")):
            error = {**refusal(user, "plain"), "code": "rate_limit_exceeded"}
            hostile.will_answer({"error": error}, status, X_Should_Retry="false")
            hostile.gate.clear()
            ask = {"prompt": f"otter {number}", **ASK}
            leases = leases_at(gateway, other)
            leading = asyncio.create_task(alice.ask(user=user, **ask))
            await eventually(lambda number=number: len(hostile.bodies) > number)
            following = [asyncio.create_task(client.ask(**ask)) for client in (bob, elsewhere)]
            await leases.until(3)
            hostile.gate.set()
            own, *others = await asyncio.gather(leading, *following)

            assert len(hostile.bodies) == number + 1
            assert own.error["message"].startswith(f"User {user} was refused.")
            for reply in others:
                assert (reply.status, reply.error["code"]) == (status, "rate_limit_exceeded")
                assert not names(user, reply.body.decode())


async def test_a_user_of_other_json_is_not_named_either(hostile: Hostile, tmp_path: Path) -> None:
    """Lenient validation forwards any JSON."""
    user = {"id": 471108150, "groups": [["art-department"]], "active": True}
    settings = make_settings(tmp_path, hostile.base_url, upstream={"api_key": KEY})
    async with run_gateway(settings) as gateway:
        alice, bob = [
            await gateway.client.with_key(name, validation="lenient") for name in ("alice", "bob")
        ]
        message = "Refused 471108150 of art-department. True."
        hostile.will_answer({"error": {"message": message, "code": "moderation_blocked"}}, 400)
        own, other = await alice.ask(user=user, **ASK), await bob.ask(**ASK)
    assert own.error["message"] == message
    assert other.error["message"] == "Refused *** of ***. True."


@pytest.mark.timed
async def test_a_user_of_very_many_names_is_not_named_and_delays_no_request(
    hostile: Hostile, tmp_path: Path
) -> None:
    user = [f"member-{number:03}-{'x' * 200}" for number in range(900)]
    settings = make_settings(tmp_path, hostile.base_url, upstream={"api_key": KEY})
    async with run_gateway(settings) as gateway:
        alice, bob = [
            await gateway.client.with_key(name, validation="lenient") for name in ("alice", "bob")
        ]
        started = time.monotonic()
        error = refusal(user[7], "plain")
        hostile.will_answer({"error": error}, 400)
        own, other = await alice.ask(user=user, **ASK), await bob.ask(**ASK)
        hostile.will_answer({"data": [{**GOOD, "revised_prompt": f"For {user[7]}", "seed": "7"}]})
        prompt = "%41" * 300
        bought = await alice.ask(prompt, user=user, **ASK)
        assert time.monotonic() - started < 5
    assert own.error["message"] == error["message"]
    assert other.error["code"] == "moderation_blocked"
    assert "member" not in other.body.decode()
    assert bought.json["data"] == [GOOD]


@pytest.mark.timed
async def test_a_text_of_backslashes_delays_no_request(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    """The time once grew with the square of their number: 16,000 took 20 s."""
    prompt = "\\" * 16_000
    hostile.will_answer({"data": [{**GOOD, "revised_prompt": prompt}]})
    started = time.monotonic()
    bought = await alice.ask(prompt, user="ann", model="gpt-image-2")
    hit = await bob.ask(prompt, model="gpt-image-2")
    assert time.monotonic() - started < 5
    assert [reply.json["data"][0]["revised_prompt"] for reply in (bought, hit)] == [prompt] * 2


async def test_a_replayed_failure_does_not_name_the_first_user(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """The same Idempotency-Key may come with another `user`."""
    error = {"message": "Failed for user-7f3a9c1e5b.", "code": "c"}
    # After another event upstream may have charged for it, so the failure is remembered.
    hostile.will_stream(("image_generation.generating", {}), ("error", {"error": error}))
    key = {"Idempotency-Key": "one"}
    ask = {"model": "gpt-image-2", "stream": True, "headers": key}
    await alice.ask(user="user-7f3a9c1e5b", **ask)
    replayed = await alice.ask(user="user-of-another", **ask)
    assert len(hostile.bodies) == 1
    assert b"7f3a9c1e5b" not in replayed.body


async def test_an_image_does_not_name_its_buyer_to_other_keys(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    """Of its texts. Words of the prompt are no secret to keys that send the same prompt."""
    for number, user in enumerate(USERS.values()):
        echo = {"user": user, "safety_identifier": "hash", "for": [{"name": user}], user: 1}
        revised = "A quiet otter without annotations"
        hostile.will_answer({"data": [{**GOOD, **echo, "seed": 7, "revised_prompt": revised}]})
        prompt = f"A quiet otter {number}"
        bought = await alice.ask(prompt, user=user, **ASK)
        hit = await bob.ask(prompt, **ASK)
        for reply in (bought, hit):
            (image,) = reply.json["data"]
            assert image == {**GOOD, "revised_prompt": revised}, user
        assert len(hostile.bodies) == number + 1


async def test_a_completed_event_does_not_name_its_buyer_to_other_keys(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    image = {**GOOD, "user": "ann", "revised_prompt": "An otter for ann, cannot stay"}
    hostile.will_stream((COMPLETED, image))
    model = {"model": "gpt-image-2"}
    await alice.ask(user="ann", stream=True, **model)
    hit = await bob.ask(**model)
    (found,) = hit.json["data"]
    assert found == {**GOOD, "revised_prompt": "An otter for ***, cannot stay"}


async def test_an_echoed_parameter_does_not_name_the_buyer_to_other_keys(
    gateway: InProcess, alice: Client, bob: Client, hostile: Hostile
) -> None:
    """Neither in an image nor in a partial one. Ordinary values stay, whatever the user's name."""
    echo = {"quality": "ann", "background": "for ann", "size": "1024x1024", "output_format": "png"}
    partial_image = {**GOOD, **echo, "partial_image_index": 0}
    hostile.will_stream(
        ("image_generation.partial_image", partial_image), (COMPLETED, {**GOOD, **echo})
    )
    model = {"model": "gpt-image-2"}
    shown = await alice.ask(user="ann", stream=True, partial_images=1, **model)
    hit = await bob.ask(**model)
    assert "ann" not in shown.body.decode() + hit.body.decode()

    for user in ("1024x1024", "png", "high"):
        echo = {"quality": "high", "size": "1024x1024", "output_format": "png"}
        hostile.will_answer({"data": [GOOD], **echo})
        await alice.ask(f"For {len(user)}", user=user, **model)
        hit = await bob.ask(f"For {len(user)}", **model)
        assert {name: hit.json[name] for name in echo} == echo
