"""The simulated upstream over a real socket: its images, its refusals and its faults."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import time
from contextlib import asynccontextmanager
from datetime import datetime

import aiohttp
import pytest
from pydantic import ValidationError
from yarl import URL

from gateway.catalog import SimulatorSpec
from gateway.imagefile.check import check_image
from gateway.imagefile.facts import BadImage
from gateway.simulator import SimulatorSettings, open_simulator
from gateway.simulator.faults import FAULTS, BadFault, parse_fault
from gateway.simulator.generation import formula_tokens, resolve
from tests.catalogs import shipped_catalog
from tests.rows import each_row
from tests.waiting import GENEROUS_SECONDS, eventually

CATALOG = shipped_catalog()

GPT = {"model": "gpt-image-2", "prompt": "an otter"}
DALL_E_2 = {"model": "dall-e-2", "prompt": "an otter", "size": "256x256"}


class SimulatorClient:
    """A client of one simulator."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base
        self.root = str(URL(base).origin())

    async def create(self, body: object, **headers: str) -> tuple[int, dict]:
        async with self.post(body, **headers) as response:
            return response.status, await response.json()

    def post(self, body: object, **headers: str):
        return self.session.post(f"{self.base}/images/generations", json=body, headers=headers)

    async def calls(self) -> list[dict]:
        async with self.session.get(f"{self.root}/_sim/calls") as response:
            return await response.json()

    async def queue(self, *faults: str) -> int:
        async with self.session.put(f"{self.root}/_sim/faults", json=faults) as response:
            return response.status


@asynccontextmanager
async def open_client(**settings):
    options = {"latency_scale": 0, "small_images": True} | settings
    async with (
        open_simulator(
            "127.0.0.1", 0, catalog=CATALOG, settings=SimulatorSettings(**options)
        ) as base,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=GENEROUS_SECONDS)) as session,
    ):
        yield SimulatorClient(session, base)


@pytest.fixture
async def sim():
    async with open_client() as client:
        yield client


def facts_of(element: dict):
    data = base64.b64decode(element["b64_json"], validate=True)
    return check_image(data, max_bytes=2**26, max_pixels=33_000_000)


def error_of(answer: tuple[int, dict]) -> tuple:
    status, body = answer
    error = body["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return status, error["code"], error["param"]


# ── images ──────────────────────────────────────────────────────────────────────────────────


async def test_a_gpt_model_returns_images_with_resolved_values_and_usage(sim):
    status, body = await sim.create(GPT | {"n": 2, "quality": "auto", "background": "auto"})
    assert status == 200
    assert len(body.pop("data")) == 2
    assert abs(body.pop("created") - time.time()) < GENEROUS_SECONDS
    assert body == {
        "background": "opaque",
        "output_format": "png",
        "quality": "high",
        "size": "1024x1024",
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 9},
            "output_tokens": 14048,
            "output_tokens_details": {"image_tokens": 14048, "text_tokens": 0},
            "total_tokens": 14057,
        },
    }


async def test_images_have_the_requested_size_and_format():
    async with open_client(small_images=False) as sim:
        for kind in ("png", "jpeg", "webp"):
            body = GPT | {"size": "1536x1024", "output_format": kind}
            _, answer = await sim.create(body)
            facts = facts_of(answer["data"][0])
            assert (facts.format, facts.width, facts.height) == (kind, 1536, 1024)
            assert answer["output_format"] == kind


async def test_a_response_with_small_images_still_names_the_requested_size(sim):
    _, body = await sim.create(GPT | {"size": "1024x1536"})
    facts = facts_of(body["data"][0])
    assert (facts.width, facts.height) == (64, 96)
    assert body["size"] == "1024x1536"


async def test_the_same_request_gives_different_images_every_time(sim):
    answers = [await sim.create(GPT | {"n": 3}) for _ in range(2)]
    assert len({d["b64_json"] for _, body in answers for d in body["data"]}) == 6


@pytest.mark.parametrize("model", ["gpt-image-2", "gpt-image-2-2026-04-21"])
async def test_the_formula_model_takes_any_size_on_its_grid_and_splits_its_output_tokens(
    sim, model
):
    body = {"model": model, "prompt": "otter", "size": "3072x2160", "quality": "low"}
    _, answer = await sim.create(body)
    assert answer["size"] == "3072x2160"
    assert answer["usage"]["output_tokens"] == 380
    assert answer["usage"]["output_tokens_details"] == {"image_tokens": 380, "text_tokens": 0}


@pytest.mark.parametrize(
    ("size", "low", "medium", "high"),
    [
        ((1024, 1024), 196, 1756, 7024),
        ((1536, 1024), 158, 1372, 5488),
        ((1024, 1536), 158, 1372, 5488),
        ((768, 1024), 134, 1204, 4815),
        ((2048, 2048), 397, 3568, 14272),
        ((2560, 1440), 205, 1843, 7370),
        ((3072, 2160), 380, 3524, 14094),
        ((3840, 2160), 371, 3336, 13342),
    ],
)
def test_the_token_formula_gives_the_published_figures(size, low, medium, high):
    formula = CATALOG.models["gpt-image-2"].billing.output_tokens_formula
    tokens = [formula_tokens(formula, quality, size) for quality in ("low", "medium", "high")]
    assert tokens == [low, medium, high]


async def test_dall_e_2_gives_links_by_default_and_no_usage(sim):
    _, body = await sim.create(DALL_E_2 | {"n": 2})
    assert body.keys() == {"created", "data"}
    assert [element.keys() for element in body["data"]] == [{"url"}, {"url"}]


async def test_dall_e_3_revises_the_prompt(sim):
    request = {"model": "dall-e-3", "prompt": "an otter", "response_format": "b64_json"}
    _, body = await sim.create(request | {"style": "natural", "quality": "hd"})
    assert body["data"][0].keys() == {"revised_prompt", "b64_json"}
    assert body["data"][0]["revised_prompt"].startswith("an otter, ")


@pytest.mark.parametrize("model", list(CATALOG.models))
async def test_every_model_accepts_its_smallest_request(sim, model):
    status, body = await sim.create({"model": model, "prompt": "otter"})
    assert status == 200
    assert len(body["data"]) == 1


async def test_a_link_gives_the_image_only_with_its_query_unchanged_and_without_a_key(sim):
    _, body = await sim.create(DALL_E_2)
    link = body["data"][0]["url"]
    assert "%2B" in link
    assert "%2F" in link
    async with sim.session.get(URL(link, encoded=True)) as response:
        assert (response.status, response.content_type) == (200, "image/png")
        check_image(await response.read(), max_bytes=2**26, max_pixels=10**6)
    for changed, headers in (
        (link.replace("%2B", "+"), {}),
        (link + "&x=1", {}),
        (link.partition("?")[0], {}),
        (link.replace("img-", "img-0"), {}),
        (link, {"Authorization": "Bearer sk-1"}),
    ):
        async with sim.session.get(URL(changed, encoded=True), headers=headers) as response:
            assert (response.status, response.content_type) == (403, "application/xml")
            assert "AuthenticationFailed" in await response.text()


async def test_responses_have_the_headers_of_the_service_and_of_its_edge(sim):
    async with sim.post(GPT) as response:
        assert response.headers["x-request-id"].startswith("req_")
        assert len(response.headers["x-request-id"]) == 36
        assert response.headers["openai-processing-ms"].isdecimal()
        assert response.headers["openai-version"] == "2020-10-01"
        assert response.headers["server"] == "cloudflare"
        assert {"set-cookie", "alt-svc", "cf-ray"} <= {h.lower() for h in response.headers}


async def test_models_are_listed_and_shown(sim):
    async with sim.session.get(f"{sim.base}/models") as response:
        listed = await response.json()
    assert [model["id"] for model in listed["data"]] == list(CATALOG.models)
    async with sim.session.get(f"{sim.base}/models/gpt-image-1") as response:
        assert (await response.json())["id"] == "gpt-image-1"
    async with sim.session.get(f"{sim.base}/models/foo") as response:
        assert response.status == 404


async def test_paths_without_v1_and_the_health_check_respond(sim):
    async with sim.session.post(f"{sim.root}/images/generations", json=GPT) as response:
        assert response.status == 200
    async with sim.session.get(f"{sim.root}/healthz") as response:
        assert await response.json() == {"status": "ok"}


async def test_latency_follows_the_scale_and_grows_with_n():
    async with open_client(latency_scale=0.01) as sim:
        started = time.monotonic()
        await sim.create(GPT | {"n": 3})
        assert time.monotonic() - started >= 0.3  # 30 s on the real scale


def test_a_row_without_latency_takes_twenty_seconds():
    row = CATALOG.models["gpt-image-1"].model_copy(update={"simulator": SimulatorSpec()})
    assert resolve({"model": "gpt-image-1", "prompt": "x"}, row).latency_seconds == 20


async def test_drawing_does_not_delay_other_calls():
    async with open_client(small_images=False) as sim:
        big = GPT | {"model": "gpt-image-2", "size": "3840x2160", "n": 3}
        async with asyncio.TaskGroup() as tasks:
            drawing = tasks.create_task(sim.create(big))
            await asyncio.sleep(0.1)
            async with sim.session.get(f"{sim.root}/healthz"):
                assert not drawing.done()


# ── refusals ────────────────────────────────────────────────────────────────────────────────

REFUSED = [
    ([], None, None),
    ({"prompt": "x"}, "missing_required_parameter", "model"),
    ({"model": None, "prompt": "x"}, "invalid_type", "model"),
    ({"model": 3, "prompt": "x"}, "invalid_type", "model"),
    ({"model": "foo", "prompt": "x"}, "invalid_value", "model"),
    ({"model": "gpt-image-1", "nonsense": 1}, "unknown_parameter", "nonsense"),
    ({"model": "gpt-image-1"}, "missing_required_parameter", "prompt"),
    (GPT | {"prompt": None}, "invalid_type", "prompt"),
    (GPT | {"prompt": 7}, "invalid_type", "prompt"),
    (GPT | {"prompt": ""}, "empty_string", "prompt"),
    (GPT | {"prompt": "x" * 32001}, "string_above_max_length", "prompt"),
    (DALL_E_2 | {"prompt": "x" * 1001}, "string_above_max_length", "prompt"),
    ({"model": "dall-e-3", "prompt": "x" * 4001}, "string_above_max_length", "prompt"),
    (GPT | {"n": None}, "invalid_type", "n"),
    (GPT | {"n": "2"}, "invalid_type", "n"),
    (GPT | {"n": 1.5}, "invalid_type", "n"),
    (GPT | {"n": 2.0}, "invalid_type", "n"),
    (GPT | {"n": True}, "invalid_type", "n"),
    (GPT | {"n": 0}, "integer_below_min_value", "n"),
    (GPT | {"n": 11}, "integer_above_max_value", "n"),
    ({"model": "dall-e-3", "prompt": "x", "n": 2}, None, None),
    (GPT | {"quality": "hd"}, "invalid_value", "quality"),
    (GPT | {"quality": None}, "invalid_type", "quality"),
    (GPT | {"size": "512x512"}, "invalid_value", "size"),
    (GPT | {"size": None}, "invalid_type", "size"),
    (GPT | {"style": "vivid"}, "unknown_parameter", "style"),
    (GPT | {"response_format": "b64_json"}, "unknown_parameter", "response_format"),
    (GPT | {"response_format": None}, "unknown_parameter", "response_format"),
    (GPT | {"background": "blue"}, "invalid_value", "background"),
    (GPT | {"output_format": "gif"}, "invalid_value", "output_format"),
    (GPT | {"output_compression": 101}, "integer_above_max_value", "output_compression"),
    (GPT | {"output_compression": 50}, "invalid_png_output_compression", None),
    (GPT | {"background": "transparent", "output_format": "jpeg"}, "invalid_value", "background"),
    (GPT | {"moderation": "high"}, "invalid_value", "moderation"),
    (GPT | {"partial_images": 4}, "integer_above_max_value", "partial_images"),
    (GPT | {"stream": "yes"}, "invalid_type", "stream"),
    (GPT | {"stream": True, "n": 2}, "unsupported_parameter", "input"),
    (GPT | {"partial_images": True}, "invalid_type", "partial_images"),
    (GPT | {"stream": None}, "invalid_type", "stream"),
    (GPT | {"model": "gpt-image-2", "size": 1024}, "invalid_type", "size"),
    (GPT | {"user": None}, "invalid_type", "user"),
    (DALL_E_2 | {"size": "1792x1024"}, "invalid_value", "size"),
    (DALL_E_2 | {"style": "vivid"}, "unknown_parameter", "style"),
    (DALL_E_2 | {"background": "auto"}, "unknown_parameter", "background"),
    (DALL_E_2 | {"stream": False}, "unknown_parameter", "stream"),
    (DALL_E_2 | {"quality": "hd"}, "invalid_value", "quality"),
    (DALL_E_2 | {"response_format": "png"}, "invalid_value", "response_format"),
    ({"model": "dall-e-3", "prompt": "x", "size": "256x256"}, "invalid_value", "size"),
    ({"model": "dall-e-3", "prompt": "x", "style": "odd"}, "invalid_value", "style"),
]


@each_row(("body", "code", "param"), REFUSED, ids=range(len(REFUSED)))
async def test_a_wrong_body_is_refused_with_the_services_own_error(sim, body, code, param):
    assert error_of(await sim.create(body)) == (400, code, param)


@each_row(
    ("size", "complaint"),
    [
        ("bogus", "Expected WIDTHxHEIGHT, for example '1824x1024'."),
        ("1000x1000", "Width and height must both be divisible by 16."),
        ("4096x2048", "The longest edge must be less than or equal to 3840."),
        ("3072x512", "The aspect ratio must be between 1:3 and 3:1."),
        ("512x512", "Requested resolution is below the current minimum pixel budget."),
        ("3840x3840", "Requested resolution exceeds the current pixel budget."),
    ],
)
async def test_a_size_off_the_grid_is_refused_in_the_services_words(sim, size, complaint):
    _, body = await sim.create({"model": "gpt-image-2", "prompt": "x", "size": size})
    assert body["error"] == {
        "message": f"Invalid size '{size}'. {complaint}",
        "type": "image_generation_user_error",
        "param": "size",
        "code": "invalid_value",
    }


LOW_N = "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead."
QUALITIES = "Supported values are: 'low', 'medium', 'high', and 'auto'."
WRONG_QUALITY = (
    "Invalid type for 'quality': expected one of 'low', 'medium', 'high', or 'auto', "
    "but got an integer instead."
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": "2"}, "Invalid type for 'n': expected an integer, but got a string instead."),
        ({"n": 0}, LOW_N),
        ({"quality": "ultra"}, f"Invalid value: 'ultra'. {QUALITIES}"),
        ({"quality": 1}, WRONG_QUALITY),
        ({"moderation": "x"}, "Invalid value: 'x'. Supported values are: 'auto' and 'low'."),
        ({"foo": 1}, "Unknown parameter: 'foo'."),
    ],
)
async def test_refusals_use_the_services_words(sim, change, message):
    _, body = await sim.create(GPT | change)
    assert body["error"]["message"] == message


async def test_invalid_json_is_refused(sim):
    for raw in (b"", b"{", b'{"a": NaN}', b'{"prompt": "\\ud800"}', b"\xff", b"[" * 5000):
        response = await sim.session.post(
            f"{sim.base}/images/generations",
            data=raw,
            headers={"Content-Type": "application/json; charset=utf-8"},
        )
        assert response.status == 400
        assert "could not parse the JSON body" in await response.text()


async def test_another_content_type_and_a_huge_body_are_refused(sim):
    url = f"{sim.base}/images/generations"
    async with sim.session.post(url, data="x", headers={"Content-Type": "text/plain"}) as answer:
        assert (await answer.json())["error"]["code"] == "unsupported_content_type"
    async with sim.session.post(
        url, data=io.BytesIO(b" " * (5 * 2**20)), headers={"Content-Type": "application/json"}
    ) as answer:
        assert answer.status == 413
        assert "error" in await answer.json()


async def test_another_key_or_none_is_refused_when_a_key_is_set():
    async with open_client(api_key="sk-simulated-secret-1234") as sim:
        status, body = await sim.create(GPT, Authorization="Bearer sk-abcdefghijklmnopwxyz")
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert "sk-abc***wxyz" in body["error"]["message"]
        status, body = await sim.create(GPT)
        assert (status, body["error"]["code"]) == (401, None)
        status, _ = await sim.create(GPT, Authorization="Bearer sk-simulated-secret-1234")
        assert status == 200
        async with sim.session.get(f"{sim.base}/models") as response:
            assert response.status == 401


async def test_unknown_paths_and_methods_get_the_json_of_the_api(sim):
    async with sim.session.get(f"{sim.base}/images/generations") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert "Not allowed to GET" in (await response.json())["error"]["message"]
    async with sim.session.post(f"{sim.base}/images/foo") as response:
        assert response.status == 404
        message = (await response.json())["error"]["message"]
        assert message == "Invalid URL (POST /v1/images/foo)"


# ── recorded calls ──────────────────────────────────────────────────────────────────────────


async def test_calls_are_listed_with_body_fault_and_status_but_never_a_whole_key(sim):
    await sim.create(GPT | {"user": "ann"}, Authorization="Bearer sk-very-secret-1234")
    await sim.create(GPT | {"prompt": "x [[sim:status=500]]"})
    await sim.create({"model": "foo"})
    first, second, third = await sim.calls()
    assert (first["method"], first["path"]) == ("POST", "/v1/images/generations")
    assert first["body"] == GPT | {"user": "ann"}
    assert first["headers"]["authorization"] == "1234"
    assert first["headers"]["content-type"] == "application/json"
    assert abs(first["time"] - time.time()) < GENEROUS_SECONDS
    assert [(c["status"], c["fault"]) for c in (first, second, third)] == [
        (200, None),
        (500, "status=500"),
        (400, None),
    ]


async def test_delete_clears_the_recorded_calls(sim):
    await sim.create(GPT)
    async with sim.session.delete(f"{sim.root}/_sim/calls") as response:
        assert response.status == 204
    assert await sim.calls() == []


# ── faults ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "status", "type", "code"),
    [
        ("status=400", 400, "invalid_request_error", None),
        ("status=401", 401, "invalid_request_error", "invalid_api_key"),
        ("status=403", 403, "invalid_request_error", None),
        ("status=500", 500, "server_error", None),
        ("status=503", 503, "service_unavailable_error", "server_is_overloaded"),
        ("429", 429, "input-images", "rate_limit_exceeded"),
        ("429;code=insufficient_quota", 429, "insufficient_quota", "insufficient_quota"),
        ("429;code=slow_down", 429, "invalid_request_error", "slow_down"),
        ("moderation", 400, "image_generation_user_error", "moderation_blocked"),
        ("content-policy", 400, "invalid_request_error", "content_policy_violation"),
        ("stream-error", 500, "image_generation_server_error", "image_generation_failed"),
    ],
)
async def test_a_fault_returns_the_error_of_the_api(sim, fault, status, type, code):
    answered, body = await sim.create(GPT | {"prompt": f"an otter [[sim:{fault}]]"})
    assert answered == status
    assert (body["error"]["type"], body["error"]["code"]) == (type, code)


async def test_moderation_names_its_stage_and_the_request(sim):
    for fault, stage in (("moderation", "input"), ("moderation;stage=output", "output")):
        async with sim.post(GPT, **{"X-Sim-Fault": fault}) as response:
            error = (await response.json())["error"]
            assert error["moderation_details"]["moderation_stage"] == stage
            assert response.headers["x-request-id"] in error["message"]


async def test_a_status_can_have_retry_after(sim):
    for fault in ("429;retry-after=1", "status=503;retry-after=1;retry-after-ms=900"):
        async with sim.post(GPT, **{"X-Sim-Fault": fault}) as response:
            assert response.headers["retry-after"] == "1"
    assert response.headers["retry-after-ms"] == "900"


@pytest.mark.parametrize("status", [502, 504, 520, 524])
async def test_the_edges_statuses_are_html(sim, status):
    async with sim.post(GPT, **{"X-Sim-Fault": f"status={status}"}) as response:
        assert (response.status, response.content_type) == (status, "text/html")
        assert "x-request-id" not in response.headers


async def test_html_is_a_page_with_status_200(sim):
    async with sim.post(GPT, **{"X-Sim-Fault": "html"}) as response:
        assert (response.status, response.content_type) == (200, "text/html")


async def test_malformed_json_is_a_complete_response_that_cannot_be_parsed(sim):
    async with sim.post(GPT, **{"X-Sim-Fault": "malformed-json"}) as response:
        assert response.status == 200
        text = await response.text()
    assert text.startswith("{")
    assert not text.rstrip().endswith("}")


@pytest.mark.parametrize("fault", ["truncate", "reset;after=half"])
async def test_a_body_can_break_off_half_way(sim, fault):
    async with sim.post(GPT, **{"X-Sim-Fault": fault}) as response:
        assert response.status == 200
        assert await response.content.readexactly(20)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await response.read()


async def test_a_reset_ends_the_connection_with_rst(sim):
    body = b'{"model": "gpt-image-1", "prompt": "[[sim:reset]]"}'
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: sim\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    url = URL(sim.base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(head.encode() + body)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert (await sim.calls())[0]["status"] is None


async def test_hang_never_responds_and_ends_when_the_client_disconnects(sim):
    waiting = asyncio.create_task(sim.create(GPT, **{"X-Sim-Fault": "hang"}))
    await eventually(lambda: is_under_way(sim))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    (call,) = await sim.calls()
    assert (call["fault"], call["status"]) == ("hang", None)


async def is_under_way(sim: SimulatorClient) -> bool:
    """Whether the fault of the first call is already recorded."""
    return any(call["fault"] for call in await sim.calls())


async def test_a_hanging_call_does_not_keep_the_simulator_from_stopping():
    async with aiohttp.ClientSession() as session:
        async with open_simulator(
            "127.0.0.1",
            0,
            catalog=CATALOG,
            settings=SimulatorSettings(faults=("hang",), latency_scale=0),
        ) as base:
            sim = SimulatorClient(session, base)
            waiting = asyncio.create_task(sim.create(GPT))
            await eventually(lambda: is_under_way(sim))
        with pytest.raises(aiohttp.ClientError):
            await waiting


async def test_slow_adds_seconds_that_are_not_scaled(sim):
    started = time.monotonic()
    status, _ = await sim.create(GPT, **{"X-Sim-Fault": "slow=0.4"})
    assert status == 200
    assert time.monotonic() - started >= 0.4


async def test_images_are_damaged_as_requested(sim):
    _, body = await sim.create(GPT, **{"X-Sim-Fault": "bad-base64"})
    with pytest.raises(ValueError, match="base64"):
        base64.b64decode(body["data"][0]["b64_json"], validate=True)
    _, body = await sim.create(GPT, **{"X-Sim-Fault": "tiny-png"})
    assert len(base64.b64decode(body["data"][0]["b64_json"])) == 5
    _, body = await sim.create(GPT | {"n": 4}, **{"X-Sim-Fault": "one-bad"})
    assert [_is_good(element) for element in body["data"]] == [True, True, False, True]


def _is_good(element: dict) -> bool:
    try:
        return bool(facts_of(element))
    except BadImage:
        return False


async def test_only_the_images_that_were_sent_are_billed(sim):
    _, body = await sim.create(GPT | {"n": 3, "quality": "low"}, **{"X-Sim-Fault": "fewer"})
    assert len(body["data"]) == 2
    assert body["usage"]["output_tokens"] == 2 * 196
    _, body = await sim.create(GPT, **{"X-Sim-Fault": "fewer"})
    assert body["data"] == []


async def test_usage_can_be_left_out(sim):
    _, body = await sim.create(GPT, **{"X-Sim-Fault": "no-usage"})
    assert "usage" not in body


async def test_two_responses_can_have_the_same_image(sim):
    answers = [await sim.create(GPT, **{"X-Sim-Fault": "same-bytes"}) for _ in range(2)]
    assert answers[0][1]["data"] == answers[1][1]["data"]


async def test_an_expired_link_responds_as_the_storage_does(sim):
    _, body = await sim.create(DALL_E_2, **{"X-Sim-Fault": "expired-url"})
    async with sim.session.get(URL(body["data"][0]["url"], encoded=True)) as response:
        assert response.status == 403
        assert "AuthenticationFailed" in await response.text()


async def status_behind(sim: SimulatorClient, body: dict) -> int:
    async with sim.session.get(URL(body["data"][0]["url"], encoded=True)) as response:
        return response.status


async def test_a_link_expires_after_its_configured_time():
    async with open_client(link_seconds=0.2) as sim:
        prompt = "an otter [[sim:link-seconds=60]]"
        _, short = await sim.create(DALL_E_2)
        _, long = await sim.create(DALL_E_2 | {"prompt": prompt})
        await asyncio.sleep(0.2)
        assert [await status_behind(sim, body) for body in (short, long)] == [403, 200]


async def test_a_link_contains_its_expiry(sim):
    _, body = await sim.create(DALL_E_2, **{"X-Sim-Fault": "link-seconds=600"})
    query = URL(body["data"][0]["url"]).query
    ends = datetime.fromisoformat(query["se"]).timestamp()
    assert abs(ends - time.time() - 600) < GENEROUS_SECONDS


@pytest.mark.parametrize(
    ("requested", "link"),
    [
        ("http://169.254.169.254/latest/", "http://169.254.169.254/latest/"),
        ("https://a.example/x?sig=%2B&y=z", "https://a.example/x?sig=%2B&y=z"),
        ("http%3A%2F%2F%5B%3A%3A1%5D%3A80%2Fa%2Cb%3Bc%252B", "http://[::1]:80/a,b;c%2B"),
        ("file:/etc/passwd", "file:/etc/passwd"),
    ],
)
async def test_a_link_can_have_any_url(sim, requested, link):
    prompt = f"an otter [[sim:url={requested}]]"
    _, by_prompt = await sim.create(DALL_E_2 | {"prompt": prompt, "n": 2})
    _, by_header = await sim.create(DALL_E_2, **{"X-Sim-Fault": f"url={requested}"})
    assert by_prompt["data"] == [{"url": link}] * 2
    assert by_header["data"] == [{"url": link}]


async def test_faults_can_be_combined(sim):
    fault = "no-usage, fewer"
    _, body = await sim.create(GPT | {"n": 2}, **{"X-Sim-Fault": fault})
    assert (len(body["data"]), "usage" in body) == (1, False)
    assert (await sim.calls())[0]["fault"] == fault


async def test_each_queued_fault_applies_to_one_call(sim):
    assert await sim.queue("status=500", "none", "429") == 204
    statuses = [(await sim.create(GPT))[0] for _ in range(5)]
    assert statuses == [500, 200, 429, 200, 200]


async def test_faults_of_the_settings_apply_to_calls_without_a_fault_of_their_own():
    async with open_client(faults=("status=500",)) as sim:
        assert (await sim.create(GPT))[0] == 500
        assert (await sim.create(GPT, **{"X-Sim-Fault": "none"}))[0] == 200
        assert (await sim.create(GPT, **{"X-Sim-Fault": "429"}))[0] == 429
        assert (await sim.create(GPT))[0] == 500


async def test_a_fault_can_apply_to_the_first_calls_with_a_prompt(sim):
    prompts = ["a [[sim:status=503;times=2]]"] * 3 + ["b [[sim:status=503;times=2]]"]
    statuses = [(await sim.create(GPT | {"prompt": prompt}))[0] for prompt in prompts]
    assert statuses == [503, 503, 200, 503]


async def test_an_unknown_fault_is_refused_and_the_known_ones_are_named(sim):
    for body, headers in (
        (GPT | {"prompt": "x [[sim:boom]]"}, {}),
        (GPT, {"X-Sim-Fault": "boom"}),
    ):
        status, answer = await sim.create(body, **headers)
        assert (status, answer["error"]["code"]) == (400, "unknown_fault")
        assert "'boom'" in answer["error"]["message"]
        assert all(name in answer["error"]["message"] for name in FAULTS)
    assert await sim.queue("boom") == 400
    with pytest.raises(ValidationError, match="boom"):
        SimulatorSettings(faults=("boom",))


@each_row(
    "text",
    [
        *(
            "",
            "status",
            "status=200",
            "status=abc",
            "hang=3",
            "429;foo=1",
            "429;times=x",
            "slow=-1",
        ),
        *("url", "url=", "url=a b", "link-seconds", "link-seconds=-1", "link-seconds=soon"),
        *("split", "split=0", "split=x", "slow-stream", "slow-stream=x", "no-stream=1"),
    ],
)
def test_an_invalid_fault_is_refused(text):
    with pytest.raises(BadFault):
        parse_fault(text)


async def test_a_list_of_faults_has_to_be_a_list_of_strings(sim):
    for faults in ({"a": 1}, [1], "status=500"):
        async with sim.session.put(f"{sim.root}/_sim/faults", json=faults) as response:
            assert response.status == 400


async def test_faults_in_a_prompt_are_not_part_of_the_image(sim):
    request = {"model": "dall-e-3", "prompt": "an [[sim:slow=0]] otter"}
    _, body = await sim.create(request)
    assert body["data"][0]["revised_prompt"].startswith("an otter, ")


async def test_an_address_in_use_is_an_os_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        opened = open_simulator("127.0.0.1", port, catalog=CATALOG, settings=SimulatorSettings())
        with pytest.raises(OSError, match="address already in use"):
            async with opened:
                pass
