"""The OpenAI dialect: request bodies, responses, events and errors."""

import base64
import contextlib
import json
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Charge, UpstreamFailure
from gateway.images import (
    ImageRequest,
    PartialImage,
    UpstreamAnswer,
    UpstreamImage,
    Usage,
)
from gateway.net.sse import Event
from gateway.upstream import failures
from gateway.upstream.dialect import ParsedEvent
from gateway.upstream.openai import answers, errors, events, foreign_json, requests
from tests.examples import examples
from tests.processor import processor_seconds
from tests.rows import each_row

PIXELS = b"\x89PNG not really, but bytes"
ENCODED = base64.b64encode(PIXELS).decode()
HTML = b"<html><body>502 Bad Gateway</body></html>"


def answer(**fields) -> bytes:
    return json.dumps({"created": 1, "data": [{"b64_json": ENCODED}]} | fields).encode()


def parse(body: bytes) -> UpstreamAnswer:
    return answers.parse_answer(body, images=10, upstream_request_id="req_up")


def failed(body: bytes) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as caught:
        parse(body)
    return caught.value


def error(**fields) -> bytes:
    return json.dumps({"error": fields}).encode()


# ── requests ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "images", "expected"),
    [
        (ImageRequest(model="m", prompt="otter"), 1, {"model": "m", "prompt": "otter"}),
        (
            ImageRequest(model="m", prompt=" ötter\n", n=4, variation=3, stream=True),
            3,
            {"model": "m", "prompt": " ötter\n", "n": 3},
        ),
        (
            ImageRequest(
                model="m",
                prompt="x",
                parameters=MappingProxyType({"size": "512x512", "output_compression": 50}),
                user="ann",
                partial_images=2,
            ),
            1,
            {
                "model": "m",
                "prompt": "x",
                "size": "512x512",
                "output_compression": 50,
                "user": "ann",
            },
        ),
        (
            ImageRequest(
                model="m",
                prompt="x",
                response_format="url",
                requested_response_format="url",
                user="",
            ),
            1,
            {"model": "m", "prompt": "x", "response_format": "url", "user": ""},
        ),
        (
            ImageRequest(model="m", prompt="x", response_format="url", user={"ünï": [2**70, None]}),
            1,
            {"model": "m", "prompt": "x", "user": {"ünï": [2**70, None]}},
        ),
    ],
)
def test_the_body_contains_the_request_and_nothing_else(request_, images, expected):
    assert json.loads(requests.forwarded_body(request_, images=images)) == expected


@pytest.mark.parametrize(
    ("partial_images", "expected"),
    [(0, {"stream": True}), (3, {"stream": True, "partial_images": 3})],
)
def test_a_streamed_request_adds_its_parameters(partial_images, expected):
    request = ImageRequest(
        model="m",
        prompt="x",
        parameters=MappingProxyType({"size": "512x512"}),
        partial_images=partial_images,
    )
    plain = json.loads(requests.forwarded_body(request, images=1))
    streaming = json.loads(requests.forwarded_body(request, images=1, stream=True))
    assert streaming == plain | expected


# ── responses ─────────────────────────────────────────────────────────────────────────────


def test_all_fields_of_a_response_are_parsed():
    parsed = parse(
        answer(
            background="opaque",
            output_format="png",
            quality="low",
            size="1024x1024",
            usage={
                "input_tokens": 14,
                "input_tokens_details": {"image_tokens": 4, "text_tokens": 10},
                "output_tokens": 380,
                "output_tokens_details": {"image_tokens": 370, "text_tokens": 10},
                "total_tokens": 394,
            },
        )
    )
    assert parsed.images == (UpstreamImage(data=PIXELS),)
    assert parsed.usage == Usage(10, 4, 370, 10, has_output_details=True)
    assert dict(parsed.echoed) == {
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
    }
    assert parsed.upstream_request_id == "req_up"


LARGE = PIXELS * 4000
LARGE_ENCODED = base64.b64encode(LARGE).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"data":[{"b64_json":"%s"}]}', [LARGE]),
        ('{"data":[{"b64_json" :\n"%s", "revised_prompt": "#0"}]}', [LARGE]),
        (
            '{"data":[{"b64_json":"%s"},{"b64_json":"%s"},{"b64_json":"AAAA"}]}',
            [LARGE] * 2 + [b"\0\0\0"],
        ),
        ('{"data":[{"b64_json":"AAAA"},{"b64_json":"%s"}]}', [b"\0\0\0", LARGE]),
        ('{"data":[{"b64_json":"%s"},{"b64_json":"#0"}]}', [LARGE, None]),
        ('{"data":[{"b64_json":"%s"},{"b64_json":"%s!"}]}', [LARGE, None]),
        ('{"data":[{"b64_json":"%s","b64_json":"AAAA"}]}', [b"\0\0\0"]),
        ('\ufeff{"data":[{"b64_json":"%s"}],"n":NaN}', [LARGE]),
    ],
)
def test_a_large_image_is_read_like_a_small_one(text: str, expected: list[bytes | None]) -> None:
    body = text.replace("%s", LARGE_ENCODED).encode()
    assert [image.data for image in parse(body).images] == expected


def test_a_large_image_with_escapes_in_its_base64_is_an_image() -> None:
    slashes = base64.b64encode(b"\xff" * 120_000).decode()
    body = answer(data=[{"b64_json": slashes}]).replace(b"/", rb"\/")
    assert parse(body).images[0].data == b"\xff" * 120_000


def test_large_base64_outside_of_images_stays_unchanged() -> None:
    partial_image = {"b64_json": LARGE_ENCODED}
    image = {"b64_json": LARGE_ENCODED, "preview": partial_image}
    (found,) = parse(answer(data=[image], partial_images=[partial_image])).images
    assert found.data == LARGE
    assert found.extra == {"preview": partial_image}


def test_a_link_is_unchanged_to_the_byte():
    link = "https://h.example/img.png?st=2025-01-01T00%3A00%3A00Z&sig=a%2Bb%2F%3d&x=é"
    body = answer(data=[{"url": link, "revised_prompt": "An otter", "b64_json": None}])
    assert parse(body).images == (UpstreamImage(url=link, revised_prompt="An otter"),)


def test_null_and_empty_links_are_no_links():
    body = answer(data=[{"b64_json": ENCODED, "url": None}, {"b64_json": ENCODED, "url": ""}])
    assert parse(body).images == (UpstreamImage(data=PIXELS), UpstreamImage(data=PIXELS))


@pytest.mark.parametrize(
    "element",
    [
        {"b64_json": ENCODED[:-3]},
        {"b64_json": ENCODED + "!"},
        {"b64_json": ENCODED + ENCODED},
        {"b64_json": "data:image/png;base64"},
        {"url": "data:image/png;base64,###"},
        {"b64_json": "é"},
        {"b64_json": ""},
        {"b64_json": 5},
        {},
        None,
        "text",
    ],
)
def test_a_damaged_image_keeps_its_position_among_good_ones(element):
    good = {"b64_json": ENCODED}
    images = parse(answer(data=[good, element, good])).images
    assert [image.data for image in images] == [PIXELS, None, PIXELS]


def test_unknown_keys_of_an_image_are_kept():
    body = answer(data=[{"b64_json": ENCODED, "seed": 7}])
    assert dict(parse(body).images[0].extra) == {"seed": 7}


def test_echoes_that_are_not_text_are_ignored():
    assert dict(parse(answer(size=None, quality=3, background="opaque")).echoed) == {
        "background": "opaque"
    }


@each_row(
    ("usage", "expected"),
    [
        ({"input_tokens": 9, "output_tokens": 50}, Usage(text_in=9, image_out=50)),
        ({"prompt_tokens": 9, "completion_tokens": 50}, Usage(text_in=9, image_out=50)),
        (
            {"input_tokens": 9, "output_tokens": 50, "input_tokens_details": {"text_tokens": 0}},
            Usage(text_in=9, image_out=50),
        ),
        (
            {"input_tokens": 9, "output_tokens": 50, "output_tokens_details": None},
            Usage(text_in=9, image_out=50),
        ),
        ({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, None),
        ({"input_tokens": True, "output_tokens": 50}, None),
        ({"input_tokens": -1, "output_tokens": 50}, None),
        ({"input_tokens": "9", "output_tokens": "50"}, None),
        ({"input_tokens": 9, "output_tokens": 10**12}, None),
        ({"output_tokens": 50}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_usage_that_is_unusable_for_billing_is_ignored(usage, expected):
    assert parse(answer(usage=usage)).usage == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        HTML,
        answer()[:-10],
        b"[]",
        b"null",
        b"[" * 5000,
        b"\xff\xfe\xfd",
        answer(data=[]),
        answer(data=None),
        answer(data={"b64_json": ENCODED}),
    ],
)
def test_a_200_without_images_is_charged_and_not_quoted(body):
    failure = failed(body)
    assert (failure.status, failure.type, failure.code) == (502, "server_error", "upstream_error")
    assert failure.charge is Charge.UNDELIVERED
    assert failure.source == "upstream"
    assert failure.headers == {"x-should-retry": "false"}
    assert failure.upstream_request_id == "req_up"
    assert "sk-secret" not in json.dumps(failure.body)


def test_the_usage_of_a_response_without_images_is_kept():
    failure = failed(answer(data=[], usage={"input_tokens": 9, "output_tokens": 50}))
    assert failure.usage == Usage(text_in=9, image_out=50)


@pytest.mark.parametrize(
    ("text", "revised"), [(r"an otter \ud83e", "an otter ?"), (r"\ud83e\udda6", "\U0001f9a6")]
)
def test_a_prompt_cut_inside_an_emoji_does_not_lose_the_image(text, revised):
    body = f'{{"data": [{{"b64_json": "{ENCODED}", "revised_prompt": "{text}"}}]}}'.encode()
    assert parse(body).images == (UpstreamImage(data=PIXELS, revised_prompt=revised),)


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf" + answer(), answer(seconds=float("nan"))])
def test_sloppy_json_does_not_lose_the_image(body):
    assert parse(body).images[0].data == PIXELS


def test_signs_in_revised_prompts_are_no_values_of_the_answer():
    """Ten repetitions of a prompt that lists coordinates once lost ten images."""
    prompt = ("Otters at " + ", ".join(f"[{i}, {i + 1}]" for i in range(2600)))[:32_000]
    assert 10 * (prompt.count(",") + prompt.count("[")) > foreign_json.MAX_VALUES
    element = {"b64_json": ENCODED, "revised_prompt": prompt}
    parsed = parse(answer(data=[element] * 10))
    assert parsed.images == (UpstreamImage(data=PIXELS, revised_prompt=prompt),) * 10


@pytest.mark.timed
@pytest.mark.parametrize("start", [b'{"data":["', b'{"data":[{"b64_json":"', b'{"a":"'])
@pytest.mark.parametrize("repeated", [b'\\"', b'\\",', b'\\"[', b'"', b'",', b'":', b"{},", b",[{"])
def test_json_that_never_ends_is_rejected_in_one_pass(start, repeated):
    """The time once grew with the square of the escaped quotes: 40 KB of them took 12 s."""
    body = start + repeated * (4_000_000 // len(repeated))

    def read() -> None:
        with contextlib.suppress(UpstreamFailure):
            parse(body)

    assert processor_seconds(read, best_of=1) < 2


# ── streams ─────────────────────────────────────────────────────────────────────────────────

PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"
ECHOES = {
    "size": "1024x1024",
    "quality": "high",
    "background": "opaque",
    "output_format": "png",
}


def parse_event(name: str | None, data: object, **options) -> ParsedEvent | None:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return events.parse_event(Event(name, raw), upstream_request_id="req_up", **options)


def test_a_partial_image_is_parsed_with_index_and_echoes():
    data = {"type": PARTIAL, "b64_json": ENCODED, "partial_image_index": 2, "created_at": 1}
    assert parse_event(PARTIAL, data | ECHOES) == PartialImage(2, PIXELS, ECHOES)


def test_a_completed_event_is_a_response_with_one_image():
    usage = {
        "input_tokens": 7,
        "output_tokens": 4460,
        "total_tokens": 4467,
        "input_tokens_details": {"text_tokens": 7, "image_tokens": 0},
    }
    data = {"type": COMPLETED, "b64_json": ENCODED, "created_at": 1, "usage": usage}
    answer = parse_event(COMPLETED, data | ECHOES | {"revised_prompt": "An otter", "seed": 7})
    assert answer == UpstreamAnswer(
        images=(UpstreamImage(PIXELS, revised_prompt="An otter", extra={"seed": 7}),),
        usage=Usage(text_in=7, image_out=4460),
        echoed=ECHOES,
        upstream_request_id="req_up",
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (COMPLETED, {"b64_json": ENCODED}),
        (None, {"type": COMPLETED, "b64_json": ENCODED}),
        ("message", {"type": COMPLETED, "b64_json": ENCODED}),
        (PARTIAL, {"type": COMPLETED, "b64_json": ENCODED}),
        (COMPLETED, {"type": None, "b64_json": ENCODED, "error": None}),
        (COMPLETED, b"\xef\xbb\xbf" + json.dumps({"b64_json": ENCODED}).encode()),
    ],
)
def test_the_type_of_an_event_is_in_its_data_or_else_its_name(name, data):
    answer = parse_event(name, data)
    assert isinstance(answer, UpstreamAnswer)
    assert answer.images == (UpstreamImage(PIXELS),)


@each_row(
    ("name", "data"),
    [
        ("ping", {}),
        ("image_generation.thinking", {"type": "image_generation.thinking", "b64_json": ENCODED}),
        ("ping", b""),
        ("ping", b"not json"),
        (None, b"[DONE]"),
        (None, b""),
        (None, b"[1]"),
        (None, {"b64_json": ENCODED}),
        (PARTIAL, b'{"b64_json": "' + ENCODED.encode()),
        (PARTIAL, {"b64_json": ENCODED}),
        (PARTIAL, {"b64_json": ENCODED, "partial_image_index": -1}),
        (PARTIAL, {"b64_json": ENCODED, "partial_image_index": "0"}),
        (PARTIAL, {"b64_json": ENCODED, "partial_image_index": True}),
        (PARTIAL, {"b64_json": ENCODED[:-3], "partial_image_index": 0}),
        (PARTIAL, {"b64_json": ENCODED + "!", "partial_image_index": 0}),
        (PARTIAL, {"partial_image_index": 0}),
    ],
)
def test_unknown_events_and_damaged_partial_images_are_ignored(name, data):
    assert parse_event(name, data) is None


def test_a_large_partial_image_is_read_like_a_small_one():
    data = {"type": PARTIAL, "b64_json": LARGE_ENCODED, "partial_image_index": 2}
    assert parse_event(PARTIAL, data | ECHOES) == PartialImage(2, LARGE, ECHOES)
    assert parse_event(PARTIAL, data | {"b64_json": LARGE_ENCODED + "!"}) is None


def test_a_large_completed_image_is_read_like_a_small_one():
    partial_image = {"b64_json": LARGE_ENCODED}
    data = {"type": COMPLETED, "b64_json": LARGE_ENCODED}
    plain, odd = (
        parse_event(COMPLETED, data),
        parse_event(COMPLETED, data | {"preview": partial_image}),
    )
    assert isinstance(plain, UpstreamAnswer)
    assert isinstance(odd, UpstreamAnswer)
    assert plain.images == (UpstreamImage(LARGE),)
    assert odd.images == (UpstreamImage(LARGE, extra={"preview": partial_image}),)


@pytest.mark.parametrize("data", [b"", b"{", HTML, b'{"b64_json": "' + ENCODED.encode(), b"[]"])
def test_an_unreadable_completed_event_is_charged(data):
    failure = parse_event(COMPLETED, data)
    assert isinstance(failure, UpstreamFailure)
    assert (failure.status, failure.code) == (502, "upstream_error")
    assert failure.charge is Charge.UNDELIVERED
    assert failure.upstream_request_id == "req_up"


def test_a_completed_event_with_a_damaged_image_keeps_its_usage():
    usage = {"input_tokens": 9, "output_tokens": 50}
    answer = parse_event(COMPLETED, {"type": COMPLETED, "b64_json": "###", "usage": usage})
    assert isinstance(answer, UpstreamAnswer)
    assert answer.images == (UpstreamImage(),)
    assert answer.usage == Usage(text_in=9, image_out=50)


def failure_in_stream(name: str | None, data: object, **options) -> UpstreamFailure:
    failure = parse_event(name, data, **options)
    assert isinstance(failure, UpstreamFailure)
    assert failure.charge is Charge.PRESUMED
    assert failure.headers == {"x-should-retry": "false"}
    assert failure.upstream_request_id == "req_up"
    return failure


def test_moderation_in_a_stream_keeps_code_and_details():
    sent = {
        "message": "Your request was rejected by the safety system.",
        "type": "image_generation_user_error",
        "param": None,
        "code": "moderation_blocked",
        "moderation_details": {"moderation_stage": "output", "categories": ["violence"]},
    }
    failure = failure_in_stream("error", {"type": "error", "error": sent})
    assert failure.status == 400
    assert failure.body == {"error": sent}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"type": "image_generation_server_error", "code": "image_generation_failed"}, 500),
        ({"type": "server_error"}, 500),
        ({}, 500),
        ({"type": "image_generation_user_error", "code": "anything"}, 400),
        ({"type": "billing_limit_user_error", "code": "billing_hard_limit_reached"}, 400),
        ({"type": "invalid_request_error"}, 400),
        ({"code": "content_policy_violation"}, 400),
        ({"type": "tokens", "code": "rate_limit_exceeded"}, 429),
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, 429),
    ],
)
def test_an_error_event_has_the_status_of_the_same_error_outside_a_stream(fields, status):
    failure = failure_in_stream("error", {"type": "error", "error": {"message": "m", **fields}})
    assert (failure.status, failure.message, failure.code) == (status, "m", fields.get("code"))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("error", {"message": "m", "code": "c"}, ("m", "server_error", "c")),
        (None, {"type": "error", "message": "m", "code": 7}, ("m", "server_error", "7")),
        (None, {"error": {"message": "m", "type": "t"}}, ("m", "t", None)),
        ("message", {"error": "m"}, ("m", "server_error", None)),
        (COMPLETED, {"type": COMPLETED, "error": {"message": "m"}}, ("m", "server_error", None)),
        ("error", b"", ("Upstream answered 500.", "server_error", None)),
        ("error", b"{", ("Upstream answered 500.", "server_error", None)),
        ("error", {"error": None}, ("Upstream answered 500.", "server_error", None)),
        ("error", {"error": [1]}, ("Upstream answered 500.", "server_error", None)),
    ],
)
def test_errors_of_compatible_upstreams_are_recognized(name, data, expected):
    failure = failure_in_stream(name, data)
    assert (failure.message, failure.type, failure.code) == expected


def test_a_rejected_key_in_a_stream_is_not_quoted():
    failure = failure_in_stream("error", {"error": {"message": "sk", "code": "invalid_api_key"}})
    assert (failure.status, failure.code) == (502, "upstream_auth")
    assert "sk" not in failure.message


EVENT_NAMES = st.sampled_from([PARTIAL, COMPLETED, "error", "ping", None])


@settings(max_examples=examples(500), deadline=None)
@given(EVENT_NAMES, st.binary(max_size=60))
def test_no_content_of_an_event_raises(name, data):
    parsed = parse_event(name, data)
    if isinstance(parsed, UpstreamAnswer):  # of a small object, such as `{"": ""}`
        assert [image.data for image in parsed.images] == [None]
    else:
        assert parsed is None or isinstance(parsed, UpstreamFailure)


@settings(max_examples=examples(500), deadline=None)
@given(
    EVENT_NAMES,
    st.dictionaries(
        st.sampled_from(
            ["type", "b64_json", "partial_image_index", "error", "usage", "size", "message", "url"]
        ),
        st.sampled_from(
            [PARTIAL, COMPLETED, "error", ENCODED, "", 0, 1, True, 1.5, None, [], {}, {"code": 1}]
        ),
    ),
)
def test_no_shape_of_an_event_raises(name, document):
    parsed = parse_event(name, document)
    if isinstance(parsed, UpstreamFailure):
        shared = UpstreamFailure.from_dict(json.loads(json.dumps(parsed.to_dict())))
        assert shared.body == parsed.shared().body


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def test_the_apis_own_error_is_relayed_with_its_extra_keys():
    sent = {
        "message": "Your request was rejected by the safety system.",
        "type": "image_generation_user_error",
        "param": "",
        "code": "moderation_blocked",
        "moderation_details": {"moderation_stage": "input", "categories": ["sexual"]},
    }
    failure = errors.parse_error(400, {"X-Request-Id": "req_1", "Set-Cookie": "a=b"}, error(**sent))
    assert failure.status == 400
    assert failure.body == {"error": sent}
    assert failure.charge is Charge.FREE
    assert failure.headers == {}
    assert failure.source == "upstream"
    assert failure.upstream_request_id == "req_1"
    assert UpstreamFailure.from_dict(json.loads(json.dumps(failure.to_dict()))).body == failure.body


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error(message="m"), ("m", "invalid_request_error", None, None)),
        (500, error(), ("Upstream answered 500.", "server_error", None, None)),
        (500, error(message="m", type="t", code=500), ("m", "t", None, "500")),
        (400, b'{"error": "bad size"}', ("bad size", "invalid_request_error", None, None)),
        (404, b'{"detail": "Not Found"}', ("Not Found", "invalid_request_error", None, None)),
        (
            400,
            b'{"object": "error", "message": "m", "type": "T", "param": "n", "code": true}',
            ("m", "T", "n", None),
        ),
    ],
)
def test_errors_of_compatible_upstreams_get_all_four_keys(status, body, expected):
    failure = errors.parse_error(status, {}, body)
    fields = (failure.message, failure.type, failure.param, failure.code)
    assert (failure.status, fields) == (status, expected)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, error(message="Incorrect API key provided: sk-secret.", code="invalid_api_key")),
        (403, error(message="sk-secret", type="request_forbidden", owner="sk-secret")),
        (403, HTML),
        (400, error(message="bad key sk-secret", code="invalid_api_key")),
    ],
)
def test_a_rejected_key_is_not_quoted(status, body):
    failure = errors.parse_error(status, {}, body)
    assert (failure.status, failure.type, failure.code) == (502, "server_error", "upstream_auth")
    assert failure.charge is Charge.FREE
    assert "sk-secret" not in json.dumps(failure.to_dict())


OWN = error(message="m", type="server_error", param=None, code=None)


@each_row(
    ("status", "body", "answered", "code", "charge"),
    [
        (400, OWN, 400, None, Charge.FREE),
        (404, HTML, 502, "upstream_error", Charge.FREE),
        (429, OWN, 429, None, Charge.FREE),
        (429, b"error code: 1015", 429, "rate_limit_exceeded", Charge.FREE),
        (500, OWN, 500, None, Charge.ASSUMED_FREE),
        (500, HTML, 502, "upstream_error", Charge.PRESUMED),
        (502, OWN, 502, None, Charge.ASSUMED_FREE),
        (502, HTML, 502, "upstream_error", Charge.PRESUMED),
        (502, b'{"message": "Internal server error"}', 502, "upstream_error", Charge.PRESUMED),
        (503, OWN, 503, None, Charge.FREE),
        (503, HTML, 502, "upstream_error", Charge.FREE),
        (504, OWN, 504, None, Charge.ASSUMED_FREE),
        (504, HTML, 504, "upstream_error", Charge.PRESUMED),
        (520, HTML, 502, "upstream_error", Charge.PRESUMED),
        (524, HTML, 504, "upstream_error", Charge.PRESUMED),
        (
            524,
            b'{"title": "524", "cloudflare_error": true}',
            504,
            "upstream_error",
            Charge.PRESUMED,
        ),
        (500, OWN[:-4], 502, "upstream_error", Charge.PRESUMED),
        (302, HTML, 502, "upstream_error", Charge.FREE),
        (307, OWN, 502, "upstream_error", Charge.FREE),
    ],
)
def test_status_and_body_decide_error_and_charge(status, body, answered, code, charge):
    failure = errors.parse_error(status, {"Location": "https://secret.example"}, body)
    assert (failure.status, failure.code, failure.charge) == (answered, code, charge)
    is_charged = charge in (Charge.UNDELIVERED, Charge.PRESUMED)
    assert failure.headers == ({"x-should-retry": "false"} if is_charged else {})


@each_row(
    ("received", "relayed"),
    [
        ({"retry-after": "7"}, {"Retry-After": "7"}),
        ({"RETRY-AFTER": "1.5"}, {"Retry-After": "2"}),
        ({"Retry-After": "120"}, {"Retry-After": "120"}),
        ({"Retry-After": "54749"}, {"Retry-After": "120", "x-should-retry": "false"}),
        ({"Retry-After": "0"}, {}),
        ({"Retry-After": "-3"}, {}),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}),
        ({"Retry-After": "٣"}, {}),
        ({"Retry-After-Ms": "534"}, {"retry-after-ms": "534"}),
        ({"retry-after-ms": "99999999"}, {}),
        ({"retry-after-ms": "soon"}, {}),
        ({"X-Should-Retry": "TRUE"}, {"x-should-retry": "true"}),
        ({"x-should-retry": "maybe"}, {}),
        ({"CF-Ray": "1", "Server": "cloudflare", "Content-Encoding": "gzip"}, {}),
    ],
)
def test_only_the_headers_about_retries_are_relayed(received, relayed):
    assert errors.parse_error(429, received, OWN).headers == relayed


@each_row(
    ("status", "fields", "expected"),
    [
        (503, {"code": "server_is_overloaded"}, True),
        (429, {"code": "rate_limit_exceeded", "type": "requests"}, True),
        (429, {"code": "slow_down", "type": "rate_limit_error"}, True),
        (429, {"code": "insufficient_quota"}, False),
        (429, {"type": "insufficient_quota"}, False),
        (429, {"code": "credit_balance_exhausted"}, False),
        (429, {"code": "organization_spend_limit_exceeded"}, False),
        (429, {"code": "project_spend_limit_exceeded"}, False),
        (429, {"code": "organization_usage_limit_exceeded"}, False),
        (429, {"code": "billing_not_active"}, False),
        (429, {"type": "billing_limit_user_error"}, False),
        (400, {"code": "x"}, False),
        (500, {"code": "server_error"}, False),
    ],
)
def test_which_failures_are_retryable(status, fields, expected):
    failure = errors.parse_error(status, {}, error(message="m", **fields))
    assert failures.is_retryable(failure, upstream_status=status) is expected


def test_a_client_must_not_retry_after_an_exhausted_quota():
    failure = errors.parse_error(
        429, {"x-should-retry": "true"}, error(message="m", code="insufficient_quota")
    )
    assert failure.headers == {"x-should-retry": "false"}


def test_x_should_retry_false_of_upstream_is_respected():
    failure = errors.parse_error(503, {"x-should-retry": "false"}, OWN)
    assert not failures.is_retryable(failure, upstream_status=503)


def test_without_a_response_only_unsent_purchases_are_retryable():
    assert failures.is_retryable(failures.unreachable(), upstream_status=None)
    assert not failures.is_retryable(failures.cut_off(), upstream_status=None)


def test_retry_after_ms_takes_precedence():
    failure = errors.parse_error(429, {"retry-after": "2", "retry-after-ms": "1500"}, OWN)
    assert failures.requested_wait_seconds(failure) == 1.5
    assert failures.requested_wait_seconds(errors.parse_error(429, {"retry-after": "2"}, OWN)) == 2
    assert failures.requested_wait_seconds(failures.unreachable()) is None


# ── any bytes ───────────────────────────────────────────────────────────────────────────────

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(ENCODED),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KNOWN_KEYS = (
    "data usage error message type code param size detail "
    "b64_json url revised_prompt input_tokens output_tokens"
)
known = st.sampled_from(KNOWN_KEYS.split())
documents = st.dictionaries(
    known,
    anything
    | st.dictionaries(known, anything, max_size=5)
    | st.lists(st.dictionaries(known, anything, max_size=4), max_size=3),
    max_size=6,
)
bodies = st.binary(max_size=200) | (anything | documents).map(
    lambda value: json.dumps(value).encode()
)


def written(failure: UpstreamFailure) -> bytes:
    return json.dumps(failure.to_dict(), allow_nan=False, ensure_ascii=False).encode()


def outcome(body: bytes) -> UpstreamAnswer | UpstreamFailure:
    try:
        return parse(body)
    except UpstreamFailure as failure:
        return failure


@settings(deadline=None)
@given(body=bodies)
def test_any_response_is_images_or_an_upstream_failure(body):
    result = outcome(body)
    if isinstance(result, UpstreamAnswer):
        assert result.images
        return
    assert result.charge in (Charge.UNDELIVERED, Charge.ASSUMED_FREE)
    assert written(result)


@settings(deadline=None)
@given(
    status=st.integers(min_value=300, max_value=599),
    retry_after=st.text(max_size=12) | st.integers().map(str) | st.floats().map(str),
    body=bodies,
)
def test_any_error_becomes_a_failure_that_can_be_serialised(status, retry_after, body):
    headers = {"Retry-After": retry_after, "retry-after-ms": retry_after}
    failure = errors.parse_error(status, headers, body)
    assert 400 <= failure.status < 600
    assert list(failure.body["error"])[:4] == ["message", "type", "param", "code"]
    assert isinstance(failure.message, str)
    assert isinstance(failure.type, str)
    assert 0 < (failures.requested_wait_seconds(failure) or 1) <= 120
    assert written(failure)
