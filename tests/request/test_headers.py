"""A client's request headers, and the cache policy that results from them and its key."""

import contextlib
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.errors import InvalidRequest
from gateway.images import MAX_AGE_SECONDS, ImageRequest, Reuse
from gateway.request.cache_control import CacheControl, CachePolicy, resolve_cache_policy
from gateway.request.headers import (
    MAX_COMMAS,
    RequestHeaders,
    at_variation,
    has_request_headers,
    parse_request_headers,
)
from tests.processor import processor_seconds
from tests.rows import each_row


def parse(**headers):
    """Headers whose names are written with underscores, parsed."""
    return parse_request_headers((name.replace("_", "-"), value) for name, value in headers.items())


def directives(**given):
    return RequestHeaders(CacheControl(**given))


def refusal(param, **headers):
    with pytest.raises(InvalidRequest) as caught:
        parse(**headers)
    assert caught.value.status == 400
    error = caught.value.body["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] == "invalid_value"
    prefix = f"Invalid '{param}': "
    assert error["message"].startswith(prefix)
    return error["message"].removeprefix(prefix)


# ── Cache-Control ───────────────────────────────────────────────────────────────────────────


@each_row(
    ("value", "meant"),
    [
        ("no-cache", {"no_cache": True}),
        ("No-Cache", {"no_cache": True}),
        ('no-cache="Set-Cookie"', {"no_cache": True}),
        ("no-store", {"no_store": True}),
        ("only-if-cached", {"only_if_cached": True}),
        ("max-age=60", {"max_age_seconds": 60}),
        ("MAX-AGE=60", {"max_age_seconds": 60}),
        ('max-age="60"', {"max_age_seconds": 60}),
        (r'max-age="6\0"', {"max_age_seconds": 60}),
        ("max-age = 60", {"max_age_seconds": 60}),
        ("max-age=0060", {"max_age_seconds": 60}),
        ("max-age=0", {"no_cache": True}),
        ("max-age=000", {"no_cache": True}),
        ("max-age=60, no-cache", {"no_cache": True}),
        ("no-store, max-age=60", {"no_store": True, "max_age_seconds": 60}),
        ("only-if-cached,no-store", {"only_if_cached": True, "no_store": True}),
        (",, ,no-store , ", {"no_store": True}),
    ],
)
def test_cache_control_is_read_as_rfc_9111_says(value, meant):
    assert parse(Cache_Control=value) == directives(**meant)


@each_row(
    "value",
    [
        *("", ",", '"', "=", "=no-cache", "no-cachet", "no cache", "x-no-cache", "no_cache"),
        *("max-stale", "max-stale=60", "min-fresh=60", "no-transform", "stale-if-error=60"),
        *("private, must-revalidate", "s-maxage=0", "x=no-cache", 'x="no-cache, no-store"'),
        *(r'x="\", no-cache"', 'x=", no-store', '"no-cache"', r'x="a\\\", max-age=0"'),
    ],
)
def test_unknown_directives_and_the_insides_of_quotes_are_ignored(value):
    assert parse(Cache_Control=value) == RequestHeaders()


@each_row(
    "argument",
    [
        "",
        '""',
        "soon",
        "-1",
        "+60",
        "60s",
        "60.5",
        "6 0",
        "0x3c",
        "6_0",
        "٦٠",
        '"60',
        "60;61",
        "1e9",
    ],
)
def test_an_invalid_age_makes_every_stored_image_too_old(argument):
    """RFC 9111 §4.2.1: a recipient ought to consider invalid freshness information stale."""
    assert parse(Cache_Control=f"max-age={argument}") == directives(no_cache=True)
    assert parse(Cache_Control=f"max-age=60, max-age={argument}") == directives(no_cache=True)


def test_an_age_without_argument_makes_every_stored_image_too_old():
    assert parse(Cache_Control="max-age") == directives(no_cache=True)


@pytest.mark.parametrize("zeros", ["", "000"])
@pytest.mark.parametrize(
    ("digits", "seconds"),
    [
        (str(MAX_AGE_SECONDS - 1), MAX_AGE_SECONDS - 1),
        (str(MAX_AGE_SECONDS), MAX_AGE_SECONDS),
        (str(MAX_AGE_SECONDS + 1), MAX_AGE_SECONDS),
        ("9" * 10_000, MAX_AGE_SECONDS),
    ],
    ids=["below", "exactly", "above", "endless"],
)
def test_an_age_above_the_maximum_is_the_maximum(digits, seconds, zeros):
    assert parse(Cache_Control=f"max-age={zeros}{digits}") == directives(max_age_seconds=seconds)


@pytest.mark.parametrize("value", ["max-age=60, max-age=30", "max-age=30, max-age=60"])
def test_the_stricter_of_two_ages_applies(value):
    assert parse(Cache_Control=value) == directives(max_age_seconds=30)


def test_a_header_in_several_lines_is_one_list():
    headers = CIMultiDict([("cache-control", "no-store"), ("X-Other", "1")])
    headers.add("Cache-Control", "max-age=60")
    headers.add("x-gateway-tags", "a")
    headers.add("X-GATEWAY-TAGS", "b")
    assert parse_request_headers(headers.items()) == RequestHeaders(
        CacheControl(no_store=True, max_age_seconds=60), tags=("a", "b")
    )


@pytest.mark.parametrize(
    ("headers", "no_cache"),
    [
        ({"Pragma": "no-cache"}, True),
        ({"pragma": "x, No-Cache"}, True),
        ({"Pragma": "no-cachet"}, False),
        ({"Pragma": 'x="no-cache"'}, False),
        ({"Pragma": "no-cache", "Cache_Control": "max-age=60"}, False),
        ({"Pragma": "no-cache", "Cache_Control": "no-transform"}, False),
        ({"Pragma": "no-cache", "Cache_Control": ""}, False),
        ({"Pragma": "no-cache", "Cache_Control": "no-cache"}, True),
    ],
)
def test_pragma_counts_only_without_cache_control(headers, no_cache):
    assert parse(**headers).cache_control.no_cache is no_cache


@pytest.mark.parametrize("value", ["no-store", "only-if-cached", "max-age=0", "max-age=60"])
def test_pragma_has_only_no_cache(value):
    assert parse(Pragma=value) == RequestHeaders()


OWN = ["no-cache", "no-store", "only-if-cached", "max-age=60", "max-age=0", 'max-age="7"']
FOREIGN = ["no-transform", "max-stale", 'x="a, no-cache"', r'y="\""', "", " "]


@given(st.lists(st.sampled_from(OWN)), st.lists(st.sampled_from(FOREIGN)), st.randoms())
def test_order_lines_and_foreign_directives_do_not_change_the_directives(own, foreign, random):
    mixed = own + foreign
    random.shuffle(mixed)
    in_one_line = parse(Cache_Control=",".join(mixed))
    in_lines = parse_request_headers(("cache-control", directive) for directive in mixed)
    assert in_one_line == in_lines == parse(Cache_Control=" , ".join(own))


# ── the gateway's own headers ───────────────────────────────────────────────────────────────


def test_a_request_without_such_headers_has_the_defaults():
    assert parse(Authorization="Bearer gk-1", Content_Type="application/json") == RequestHeaders()


@each_row("variation", range(64))
def test_variations_are_0_to_63(variation):
    assert parse(X_Gateway_Variation=str(variation)) == RequestHeaders(variation=variation)


@pytest.mark.parametrize(
    "value", ["64", "-1", "+1", "1.0", "", "one", "1, 2", "٣", "0x1", "9" * 999]
)
def test_another_variation_is_refused(value):
    shown = value if len(value) < 200 else "9" * 200 + "…"
    assert refusal("X-Gateway-Variation", x_gateway_variation=value) == (
        f"expected an integer from 0 to 63, but got '{shown}'."
    )


@pytest.mark.parametrize(("variation", "n"), [(0, 1), (0, 10), (63, 1), (54, 10), (7, 3)])
def test_a_request_starts_at_its_variation(variation, n):
    request = at_variation(ImageRequest("m", "an otter", n=n), variation)
    assert request.slots == range(variation, variation + n)
    assert replace(request, variation=0) == ImageRequest("m", "an otter", n=n)


@pytest.mark.parametrize(("variation", "n"), [(63, 2), (55, 10), (60, 10)])
def test_a_request_beyond_the_last_variation_is_refused_with_the_header_and_the_fix(variation, n):
    with pytest.raises(InvalidRequest) as caught:
        at_variation(ImageRequest("m", "an otter", n=n), variation)
    assert caught.value.status == 400
    assert caught.value.param == "X-Gateway-Variation"
    assert caught.value.message == (
        f"Invalid 'X-Gateway-Variation': {variation} with n={n} asks for the variations "
        f"{variation} to {variation + n - 1}, but the last one is 63. Use a variation of at most "
        f"{64 - n}, or a smaller 'n'."
    )


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("", ()),
        ("otters", ("otters",)),
        ("b, a", ("b", "a")),
        ("a,,b , ,", ("a", "b")),
        ("a, b, a", ("a", "b")),
        ("Team/Art:2026.11_x@home+1-2", ("Team/Art:2026.11_x@home+1-2",)),
        ("x" * 64, ("x" * 64,)),
        (",".join(f"t{i}" for i in range(16)), tuple(f"t{i}" for i in range(16))),
        (",".join(["a", "b"] * 16), ("a", "b")),
    ],
)
def test_tags_are_a_list_and_each_counts_once(value, tags):
    assert parse(X_Gateway_Tags=value) == RequestHeaders(tags=tags)


@pytest.mark.parametrize("tag", ["two words", '"a"', "ä", "a;b", "a=b", "x" * 65, "*", "a\x7f"])
def test_a_tag_with_other_characters_is_refused(tag):
    assert refusal("X-Gateway-Tags", x_gateway_tags=f"good, {tag}") == (
        f"a tag has 1 to 64 of the characters A-Z a-z 0-9 . _ : / @ + -, but got '{tag}'."
    )


def test_more_than_16_tags_are_refused():
    tags = ",".join(f"t{i}" for i in range(17))
    assert refusal("X-Gateway-Tags", x_gateway_tags=tags) == "expected at most 16 tags, but got 17."


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        ("0.10", 100_000),
        ("0", 0),
        ("0.000001", 1),
        ("1e-06", 1),
        (".5", 500_000),
        ("5.", 5_000_000),
        (" 12 ", 12_000_000),
        ("0.1000000000", 100_000),
        ("0.29", 290_000),
        ("4503599627.370496", 2**52),
    ],
)
def test_the_maximum_cost_is_exact(value, micros):
    assert parse(X_Gateway_Max_Cost_USD=value) == RequestHeaders(max_cost_micros=micros)


@each_row(
    "value",
    [
        *("", ".", "-0.10", "+1", "$1", "1 USD", "1,5", "0.1, 0.2", "nan", "inf", "Infinity"),
        *("0.0000001", "1e-7", "1e99", "4503599627.370497", "1_0", "١", "9" * 500, "0x1", "1e"),
    ],
)
def test_an_invalid_amount_is_refused(value):
    shown = value if len(value) < 200 else "9" * 200 + "…"
    assert refusal("X-Gateway-Max-Cost-USD", x_gateway_max_cost_usd=value) == (
        "expected an amount in US dollars such as 0.10, 0 or more, with at most six decimals, "
        f"but got '{shown}'."
    )


@given(st.integers(0, 2**52))
def test_every_amount_is_read_exactly(micros):
    shown = f"{Decimal(micros) / 1_000_000:f}"
    assert parse(X_Gateway_Max_Cost_USD=shown).max_cost_micros == micros


@each_row(
    ("value", "dry_run"),
    [
        ("dry-run", True),
        ("Dry-Run", True),
        ("dry-run; detail=full", True),
        ("dry-run;", True),
        ("respond-async, dry-run", True),
        ('wait=10, dry-run; why="a, b", x', True),
        ("dry-run=true", True),
        ("dry-running", False),
        ("respond-async; dry-run", False),
        ('x="dry-run, dry-run"', False),
        ("handling=dry-run", False),
        ("", False),
    ],
)
def test_a_dry_run_is_found_among_other_preferences(value, dry_run):
    assert parse(Prefer=value) == RequestHeaders(dry_run=dry_run)


@pytest.mark.parametrize(
    "key", ["k", "8e03978e-40d5-43dd-bc93-6894a57f9324", '"quoted"', "~" * 255]
)
def test_an_idempotency_key_is_used_verbatim(key):
    assert parse(Idempotency_Key=key) == RequestHeaders(idempotency_key=key)


@pytest.mark.parametrize("key", ["", " ", "two words", "a, b", "é", "\x00", "~" * 256])
def test_another_idempotency_key_is_refused_and_not_repeated(key):
    assert refusal("Idempotency-Key", idempotency_key=key) == (
        "expected 1 to 255 visible ASCII characters without spaces."
    )


# ── names ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("X-Gateway-Max-Cost", "X-Gateway-Max-Cost-USD"),
        ("X-GATEWAY-MAX-COST-USDS", "X-Gateway-Max-Cost-USD"),
        ("x-gateway-max_cost_usd", "X-Gateway-Max-Cost-USD"),
        ("X_Gateway_Tags", "X-Gateway-Tags"),
        ("x-gateway-tag", "X-Gateway-Tags"),
        ("x-gatewayvariation", "X-Gateway-Variation"),
        ("x-gateway-" + "z" * 10_000, "X-Gateway-"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    headers = CIMultiDict({"Accept": "*/*", name: ""})
    assert has_request_headers(headers)
    with pytest.raises(InvalidRequest, match=f"Did you mean '{nearest}") as caught:
        parse_request_headers(headers.items())
    assert (caught.value.status, caught.value.code) == (400, "unknown_header")
    assert caught.value.param[:200] == name[:200]
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("name", ["X-Gate", "Gateway-Tags", "My-X-Gateway-Tags", "X-Stainless-OS"])
def test_names_that_begin_otherwise_are_ignored(name):
    assert parse_request_headers([(name, "1")]) == RequestHeaders()


def test_a_request_without_these_headers_has_none():
    sent = CIMultiDict({"Host": "a", "Authorization": "Bearer b", "X-Stainless-Lang": "python"})
    assert not has_request_headers(sent)


NAMES = ["cache-control", "pragma", "prefer", "idempotency-key", "x-gateway-variation"]
NAMES += ["x-gateway-tags", "x-gateway-max-cost-usd", "accept"]
VALUES = st.text(st.sampled_from('abc-=", ;\\019.e\tmax')) | st.text(max_size=20)


@given(st.lists(st.tuples(st.sampled_from(NAMES), VALUES)))
def test_any_headers_are_parsed_or_refused_with_the_name_of_one(headers):
    found, refused = parsed_or_refused(headers)
    if found is None:
        assert refused.param.lower() in {name for name, _ in headers}
        return
    assert found.variation is None or 0 <= found.variation <= 63
    age = found.cache_control.max_age_seconds
    assert age is None or 0 < age <= MAX_AGE_SECONDS


def parsed_or_refused(headers):
    try:
        return parse_request_headers(headers), None
    except InvalidRequest as refused:
        return None, refused


# ── the cache policy ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "reuse"),
    [
        ("always", Reuse()),
        ("never", Reuse(no_cache=True)),
        ("within:90s", Reuse(max_age_seconds=90)),
        ("within:10m", Reuse(max_age_seconds=600)),
        ("within:12h", Reuse(max_age_seconds=43_200)),
        ("within:7d", Reuse(max_age_seconds=604_800)),
        ("within:999999999d", Reuse(max_age_seconds=MAX_AGE_SECONDS)),
    ],
)
def test_a_keys_reuse_is_always_never_or_within_a_time(text, reuse):
    assert Reuse.parse(text) == reuse


@each_row(
    "text",
    [
        *("", "Always", "no", "within", "within:", "within:0d", "within:7", "within:-7d"),
        *("within:1.5h", "within:7w", "within: 7d", "within:7d ", "within:٧d"),
        "within:" + "9" * 500 + "d",
    ],
)
def test_an_invalid_reuse_is_refused(text):
    with pytest.raises(ValueError, match="expected 'always', 'never', or 'within:'") as caught:
        Reuse.parse(text)
    assert f"but got '{text[:100]}'" in str(caught.value)


NEVER, WEEK = Reuse(no_cache=True), Reuse(max_age_seconds=604_800)
DENIED = "was ignored: this key may not ask for new images."
BY_KEY = "was applied, as the key's reuse setting says."


@pytest.mark.parametrize(
    ("cache_control", "reuse", "policy"),
    [
        (None, Reuse(), CachePolicy()),
        (None, NEVER, CachePolicy(no_cache=True, notice=f"no-cache {BY_KEY}")),
        (None, WEEK, CachePolicy(max_age_seconds=604_800, notice=f"max-age=604800 {BY_KEY}")),
        ("no-transform", NEVER, CachePolicy(no_cache=True, notice=f"no-cache {BY_KEY}")),
        ("no-cache", Reuse(), CachePolicy(no_cache=True, notice="no-cache was applied.")),
        ("no-cache", WEEK, CachePolicy(no_cache=True, notice="no-cache was applied.")),
        ("max-age=0", WEEK, CachePolicy(no_cache=True, notice="no-cache was applied.")),
        ("max-age=60", WEEK, CachePolicy(max_age_seconds=60, notice="max-age=60 was applied.")),
        ("max-age=999", NEVER, CachePolicy(max_age_seconds=999, notice="max-age=999 was applied.")),
        ("only-if-cached", NEVER, CachePolicy(only_if_cached=True)),
        ("no-store", WEEK, CachePolicy(no_store=True)),
    ],
)
def test_a_requests_own_cache_control_wins_over_the_keys_reuse(cache_control, reuse, policy):
    headers = {} if cache_control is None else {"Cache_Control": cache_control}
    assert (
        resolve_cache_policy(parse(**headers).cache_control, reuse, allow_no_cache=True) == policy
    )


@pytest.mark.parametrize(
    ("cache_control", "reuse", "policy"),
    [
        ("no-cache", Reuse(), CachePolicy(notice=f"no-cache {DENIED}")),
        ("max-age=60", Reuse(), CachePolicy(notice=f"max-age=60 {DENIED}")),
        ("max-age=0", Reuse(), CachePolicy(notice=f"no-cache {DENIED}")),
        (
            "no-cache, only-if-cached",
            NEVER,
            CachePolicy(only_if_cached=True, notice=f"no-cache {DENIED}"),
        ),
        ("no-cache, no-store", Reuse(), CachePolicy(no_store=True, notice=f"no-cache {DENIED}")),
        (
            "no-cache",
            WEEK,
            CachePolicy(
                max_age_seconds=604_800,
                notice=f"no-cache {DENIED} max-age=604800 {BY_KEY}",
            ),
        ),
        ("no-store", Reuse(), CachePolicy(no_store=True)),
        ("only-if-cached", Reuse(), CachePolicy(only_if_cached=True)),
        ("", NEVER, CachePolicy(no_cache=True, notice=f"no-cache {BY_KEY}")),
    ],
)
def test_without_the_permission_no_cache_and_max_age_are_ignored(cache_control, reuse, policy):
    """The key's own setting applies instead."""
    assert (
        resolve_cache_policy(
            parse(Cache_Control=cache_control).cache_control, reuse, allow_no_cache=False
        )
        == policy
    )


cache_controls = st.builds(
    CacheControl,
    no_cache=st.booleans(),
    no_store=st.booleans(),
    only_if_cached=st.booleans(),
    max_age_seconds=st.none() | st.integers(1, MAX_AGE_SECONDS),
)
reuses = st.sampled_from([Reuse(), NEVER, WEEK])


@given(cache_controls, reuses, st.booleans())
def test_a_notice_names_every_freshness_directive_and_fits_into_a_header(
    cache_control, reuse, allowed
):
    cache_policy = resolve_cache_policy(cache_control, reuse, allow_no_cache=allowed)
    is_requested = cache_control.no_cache or cache_control.max_age_seconds is not None
    is_applied = cache_policy.no_cache or cache_policy.max_age_seconds is not None
    assert (cache_policy.notice is not None) == (is_requested or is_applied)
    assert cache_policy.notice is None or (
        cache_policy.notice.isascii() and cache_policy.notice.isprintable()
    )
    assert (cache_policy.no_store, cache_policy.only_if_cached) == (
        cache_control.no_store,
        cache_control.only_if_cached,
    )


@given(cache_controls, reuses)
def test_without_the_permission_only_the_keys_own_setting_refuses_cached_images(
    cache_control, reuse
):
    cache_policy = resolve_cache_policy(cache_control, reuse, allow_no_cache=False)
    assert (cache_policy.no_cache, cache_policy.max_age_seconds) in [
        (False, None),
        (reuse.no_cache, reuse.max_age_seconds),
    ]


# ── long lists ──────────────────────────────────────────────────────────────────────────────

LISTS = ["Cache-Control", "Pragma", "Prefer", "X-Gateway-Tags"]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_with_too_many_commas_is_refused(name):
    problem = f"expected at most {MAX_COMMAS} commas, but got {MAX_COMMAS + 1}."
    key = name.replace("-", "_")
    assert refusal(name, **{key: "a" + "," * (MAX_COMMAS + 1)}) == problem
    assert parse(**{key: "a" + "," * MAX_COMMAS})
    repeated = [(name, "a,a")] * MAX_COMMAS  # joined by commas
    with pytest.raises(InvalidRequest):
        parse_request_headers(repeated)


@each_row("name", LISTS)
@each_row(
    "value",
    [
        *(character * 64_000 for character in 'a,"\\=;'),
        '"' + "a" * 64_000,
        '"' + r"\"" * 32_000,
        "max-age=" + "9" * 64_000,
        "a," * 255 + '"' + "a" * 64_000,
    ],
    ids=lambda value: value[:4],
)
def test_64_kib_of_a_header_take_at_most_some_milliseconds(name, value):
    def parse():
        with contextlib.suppress(InvalidRequest):
            parse_request_headers([(name, value)])

    assert processor_seconds(parse) < 0.008
