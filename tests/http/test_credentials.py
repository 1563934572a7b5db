"""Where a key may stand, what a 401 says, and Basic: never for pages of other origins."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gateway.access.attempts import ATTEMPTS_PER_MINUTE
from tests.gateways import ADMIN_TOKEN, InProcess, Reply, make_settings, run_gateway
from tests.http.conftest import Shared

in_module = pytest.mark.asyncio(loop_scope="module")

IMAGES = "/v1/images/generations"
MODELS = "/v1/models"
NO_KEY = "You didn't provide an API key."


def encode(pair: bytes | str) -> str:
    data = pair.encode() if isinstance(pair, str) else pair
    return f"Basic {base64.b64encode(data).decode()}"


def basic(secret: str, user: str = "") -> dict[str, str]:
    return {"Authorization": encode(f"{user}:{secret}")}


async def models(shared: Shared, headers: Mapping[str, str]) -> Reply:
    return await shared.alice.send("GET", MODELS, headers=headers)


def assert_refused(reply: Reply, *, code: str | None, says: str = "") -> None:
    """A 401 that names this gateway and nobody else, and asks for Bearer only."""
    assert (reply.status, reply.error["code"]) == (401, code), reply.body
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers.getall("WWW-Authenticate") == ["Bearer"]
    assert "operator of this gateway" in reply.error["message"]
    assert "openai.com" not in reply.error["message"]
    assert says in reply.error["message"]


# ── Basic ───────────────────────────────────────────────────────────────────────────────────


@in_module
@pytest.mark.parametrize("path", [MODELS, "/models", "//v1//models/", f"{MODELS}/dall-e-3"])
@pytest.mark.parametrize("user", ["", "alice", "a user", "gk-another", "müller"])
async def test_the_password_of_basic_is_the_key_whatever_the_user(
    shared: Shared, path: str, user: str
) -> None:
    headers = basic(shared.alice.secret, user)

    assert (await shared.alice.send("GET", path, headers=headers)).status == 200


@in_module
@pytest.mark.parametrize("path", [IMAGES, "/images/generations"])
async def test_an_image_is_bought_with_basic(shared: Shared, path: str) -> None:
    headers = basic(shared.alice.secret)
    body = {"model": "dall-e-2", "prompt": f"with Basic {path}", "response_format": "b64_json"}

    reply = await shared.alice.send("POST", path, headers=headers, json=body)

    assert reply.status == 200, reply.body
    assert len(await shared.sent(body["prompt"])) == 1


@in_module
async def test_basic_is_read_after_bearer_and_api_key(shared: Shared) -> None:
    """There is one Authorization header, so it is Bearer or Basic; `api-key` wins over Basic."""
    right, wrong = shared.alice.secret, "gk-a-wrong-key-of-some-length"
    scheme = {"Authorization": basic(right)["Authorization"].replace("Basic", "bAsIc ")}

    assert (await models(shared, scheme)).status == 200
    assert (await models(shared, basic(wrong) | {"api-key": right})).status == 200
    assert (await models(shared, basic(right) | {"api-key": wrong})).status == 401
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://a.example"}
    assert (await models(shared, basic(wrong) | {"api-key": right} | foreign)).status == 200


NO_PASSWORD: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "Basic",
    "no base64": lambda _: "Basic !!!",
    "the pair in plain text": lambda key: f"Basic :{key}",
    "no colon": encode,
    "no password": lambda _: encode("alice:"),
    "a password of spaces": lambda _: encode("alice:  "),
    "the key as the user": lambda key: encode(f"{key}:"),
    "base64 without its padding": lambda key: encode(f":{key}").rstrip("="),
    "a word behind it": lambda key: encode(f":{key}") + " more",
    "bytes above ASCII": lambda _: "Basic \xff\xfe",
}


@in_module
@pytest.mark.parametrize("case", NO_PASSWORD)
async def test_basic_without_a_password_is_no_key(shared: Shared, case: str) -> None:
    reply = await models(shared, {"Authorization": NO_PASSWORD[case](shared.alice.secret)})

    assert_refused(reply, code=None, says="have no password")
    assert shared.alice.secret.encode() not in reply.body


@in_module
@pytest.mark.parametrize(
    ("password", "shown"),
    [
        (b"gk-wrong", "***"),
        (b"gk-wrong-but-long-enough", "gk-wro***ough"),
        (b"\xff\xfe" * 10, "??????***????"),
        (b"pass:word:with:colons", "pass:w***lons"),
        (b"k" * 40_000, "kkkkkk***kkkk"),
        (b"line\r\nInjected: header", "line\r\n***ader"),
    ],
    ids=["short", "long", "not UTF-8", "colons", "40 KB", "two lines"],
)
async def test_a_wrong_password_is_a_wrong_key(shared: Shared, password: bytes, shown: str) -> None:
    headers = {"Authorization": encode(b"alice:" + password)}
    if len(password) > 8000:  # more than the parser takes as one header
        headers = {"Authorization": encode(b"alice:" + password[:5000])}
    reply = await models(shared, headers)

    assert_refused(reply, code="invalid_api_key", says=f"provided: {shown}. ")


@in_module
@pytest.mark.parametrize("path", ["/admin/keys", "/metrics", "/admin/cache"])
@pytest.mark.parametrize("user", ["", "admin"])
async def test_operators_have_no_basic(shared: Shared, path: str, user: str) -> None:
    reply = await shared.alice.send("GET", path, headers=basic(ADMIN_TOKEN, user))

    assert (reply.status, reply.error["code"]) == (401, "invalid_admin_token")
    assert reply.headers["WWW-Authenticate"] == "Bearer"


OTHER_PAGES: dict[str, dict[str, str]] = {
    "another port of the same host": {"Sec-Fetch-Site": "same-site"},
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "another site, with its origin": {
        "Sec-Fetch-Site": "cross-site",
        "Origin": "https://a.example",
    },
    "an unknown value": {"Sec-Fetch-Site": "Same-Origin"},
    "an empty value": {"Sec-Fetch-Site": ""},
    "two values": {"Sec-Fetch-Site": "none, cross-site"},
    "its origin alone": {"Origin": "https://a.example"},
    "its origin, another port": {"Origin": "http://127.0.0.1:1"},
    "its origin, a longer name": {"Origin": "http://127.0.0.1.a.example"},
    "no origin to tell": {"Origin": "null"},
    "an empty origin": {"Origin": ""},
}


@in_module
@pytest.mark.parametrize("case", OTHER_PAGES)
async def test_a_page_of_another_origin_cannot_use_basic(shared: Shared, case: str) -> None:
    """Neither to buy nor to look, with the right key or a wrong one, which it cannot tell apart."""
    prompt, texts = f"bought by {case}", set()
    for secret in (shared.alice.secret, "gk-wrong-but-long-enough"):
        headers = basic(secret) | OTHER_PAGES[case]
        body = {"model": "dall-e-2", "prompt": prompt}
        for reply in (
            await shared.alice.send("POST", IMAGES, headers=headers, json=body),
            await models(shared, headers),
        ):
            assert (reply.status, reply.error["code"]) == (403, "cross_origin_basic")
            texts.add(reply.error["message"])
            assert "WWW-Authenticate" not in reply.headers

    assert len(texts) == 1
    assert "Authorization: Bearer YOUR_KEY" in texts.pop()
    assert await shared.sent(prompt) == []


@in_module
async def test_a_page_of_the_gateway_itself_and_a_person_can_use_basic(shared: Shared) -> None:
    url = shared.alice.url
    pages: list[dict[str, str]] = [
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        # A proxy in front may have changed the host.
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://gateway.example"},
        {"Origin": url},
        {"Origin": "http://gateway.example", "Host": "Gateway.example:80"},
        {"Origin": "https://gateway.example", "Host": "gateway.example"},
    ]
    for page in pages:
        assert (await models(shared, basic(shared.alice.secret) | page)).status == 200, page


@in_module
async def test_a_page_of_another_origin_may_use_bearer_and_api_key(shared: Shared) -> None:
    """A browser never adds these by itself."""
    page = {"Sec-Fetch-Site": "cross-site", "Origin": "https://a.example"}

    assert (await models(shared, page)).status == 200
    as_api_key = {"Authorization": "", "api-key": shared.alice.secret}
    assert (await models(shared, as_api_key | page)).status == 200


# ── what a 401 says ─────────────────────────────────────────────────────────────────────────

HINTS: dict[str, tuple[Callable[[str], dict[str, str]], str]] = {
    "x-api-key": (lambda key: {"x-api-key": key}, "header x-api-key of your request is not read"),
    "X-API-KEY": (lambda key: {"X-API-KEY": key}, "header x-api-key of your request is not read"),
    "x-goog-api-key": (lambda key: {"x-goog-api-key": key}, "x-goog-api-key of your request is"),
    "Proxy-Authorization": (
        lambda key: {"Proxy-Authorization": f"Bearer {key}"},
        "proxy-authorization of your request is not read",
    ),
    "no scheme": (lambda key: {"Authorization": key}, "has no scheme: write 'Bearer YOUR_KEY'"),
    "a tab behind the scheme": (lambda key: {"Authorization": f"Bearer\t{key}"}, "has no scheme"),
    "Token": (lambda key: {"Authorization": f"Token {key}"}, "has another scheme than Bearer"),
    "Key": (lambda key: {"Authorization": f"Key {key}"}, "has another scheme than Bearer"),
    "Digest": (
        lambda key: {"Authorization": f'Digest username="{key}"'},
        "has another scheme than Bearer",
    ),
    "Bearer without a key": (lambda _: {"Authorization": "Bearer "}, "Bearer, but no key"),
}


@in_module
@pytest.mark.parametrize("case", HINTS)
async def test_a_401_says_where_the_key_belongs(shared: Shared, case: str) -> None:
    make, says = HINTS[case]
    headers = {"Authorization": ""} | make(shared.alice.secret)
    for reply in (
        await models(shared, headers),
        await shared.alice.send("POST", IMAGES, headers=headers),
    ):
        assert_refused(reply, code=None, says=says)
        assert reply.error["message"].startswith(NO_KEY)
        assert "Bearer" in reply.error["message"].rpartition("gateway.")[2]
        assert shared.alice.secret.encode() not in reply.body


@in_module
@pytest.mark.parametrize("name", ["api-key", "api_key", "key", "access_token", "token"])
async def test_a_key_in_the_query_is_not_read_and_the_401_says_so(
    shared: Shared, name: str
) -> None:
    path = f"{MODELS}?api-version=1&{name}={shared.alice.secret}"

    reply = await shared.alice.send("GET", path, headers={"Authorization": ""})

    assert_refused(reply, code=None, says="A key in the query is not read")
    assert shared.alice.secret.encode() not in reply.body


@in_module
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/{}"),
        ("POST", "/openai/deployments/{}/images/generations"),
        ("POST", "/openai/deployments/vendor%2F{}/images/generations"),
        ("DELETE", "/v1/models/{}"),
        ("GET", "/v1/{}"),
        ("GET", "/openai/{}/models"),
        ("DELETE", "/admin/keys/{}"),
        ("PATCH", "/admin/keys/{}"),
    ],
)
async def test_no_error_repeats_a_key_that_is_in_the_path(
    shared: Shared, method: str, path: str
) -> None:
    """A client may log the message, and a person may paste the key where a name belongs."""
    token = ADMIN_TOKEN if path.startswith("/admin") else shared.alice.secret
    reply = await shared.alice.send(
        method,
        path.format(shared.alice.secret),
        headers={"Authorization": f"Bearer {token}"},
        **({"json": {"prompt": "an otter"}} if method == "POST" else {}),
        **({"json": {"team": "art"}} if method == "PATCH" else {}),
    )

    assert reply.status in (400, 404, 405)
    assert "***" in reply.error["message"]
    assert shared.alice.secret[3:] not in reply.body.decode()


async def test_every_way_to_fail_counts_as_a_failed_attempt_but_other_pages_do_not(
    embedded: InProcess,
) -> None:
    """A page must not lock its visitor out; nothing can be guessed with its requests."""
    client = embedded.client
    alice = await client.with_key("alice")
    assert (await client.send("GET", MODELS, headers=basic(alice.secret))).status == 200
    for _ in range(2 * ATTEMPTS_PER_MINUTE):
        headers = basic("gk-wrong-but-long-enough") | {"Sec-Fetch-Site": "cross-site"}
        assert (await client.send("GET", MODELS, headers=headers)).status == 403
    ways: list[dict[str, str]] = [
        {"Authorization": ""},
        basic("gk-wrong-but-long-enough"),
        {"Authorization": "Basic !!!"},
        {"Authorization": "", "x-api-key": "gk-wrong-but-long-enough"},
        {"Authorization": "Token gk-wrong-but-long-enough"},
        {"Authorization": "Bearer gk-wrong-but-long-enough"},
    ]
    statuses = [
        (await client.send("GET", MODELS, headers=ways[number % len(ways)])).status
        for number in range(2 * ATTEMPTS_PER_MINUTE)
    ]

    assert set(statuses) == {401, 429}
    assert ATTEMPTS_PER_MINUTE <= statuses.count(401) < 2 * ATTEMPTS_PER_MINUTE
    assert (await client.send("GET", MODELS, headers=basic(alice.secret))).status == 200


async def test_a_trusted_proxy_tells_the_scheme_of_the_gateways_own_origin(
    tmp_path: Path, embedded: InProcess
) -> None:
    settings = make_settings(
        tmp_path / "behind",
        str(embedded.settings.upstream.base_url),
        server={"trusted_proxies": "127.0.0.1"},
    )
    async with run_gateway(settings) as behind:
        alice = await behind.client.with_key("alice")
        shown = {"Host": "gw.example", "X-Forwarded-Proto": "https"}

        async def status(origin: str) -> int:
            headers = basic(alice.secret) | shown | {"Origin": origin}
            return (await alice.send("GET", MODELS, headers=headers)).status

        assert await status("https://gw.example") == 200
        assert await status("http://gw.example") == 403


@pytest.mark.parametrize(
    ("public_url", "own", "others"),
    [
        ("http://gw.example:9000", ["http://gw.example:9000"], ["http://gw.example"]),
        ("https://gw.example/images", ["https://gw.example"], ["http://gw.example"]),
        (
            "http://GW.example:80/",
            ["http://gw.example"],
            ["https://gw.example", "http://a.example"],
        ),
    ],
)
async def test_behind_a_proxy_that_cuts_the_port_the_public_url_is_the_own_origin(
    tmp_path: Path, embedded: InProcess, public_url: str, own: list[str], others: list[str]
) -> None:
    upstream = str(embedded.settings.upstream.base_url)
    settings = make_settings(tmp_path / "behind", upstream, server={"public_url": public_url})
    async with run_gateway(settings) as behind:
        alice = await behind.client.with_key("alice")

        async def status(origin: str) -> int:
            headers = basic(alice.secret) | {"Host": "gw.example", "Origin": origin}
            return (await alice.send("GET", MODELS, headers=headers)).status

        assert [await status(origin) for origin in own] == [200]
        assert {await status(origin) for origin in others} == {403}
