"""The headers with which a client follows its request: which values are valid."""

from __future__ import annotations

from base64 import b64encode

import pytest
from multidict import CIMultiDict

from gateway.trace_context import NO_TRACE_CONTEXT, TraceContext, read_trace_context
from tests.rows import each_row

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def read(*headers: tuple[str, str]) -> TraceContext:
    return read_trace_context(CIMultiDict(headers))


@pytest.mark.parametrize(
    "value",
    [
        PARENT,
        f" {PARENT} ",
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-ff",
        f"01-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-what-comes-later",
        f"fe-{TRACE}-{SPAN}-01-",
    ],
)
def test_a_valid_traceparent_is_kept(value: str) -> None:
    assert read(("TraceParent", value)).traceparent == value.strip()


@each_row(
    "value",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"01-{TRACE}-{SPAN}-01more",
        f"01-{TRACE}-{SPAN}-01-" + "a" * 300,
        f"0g-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01\udcff",
        f"{PARENT},{PARENT}",
        f"00-{TRACE}-{SPAN}-٠١",
    ],
)
def test_a_malformed_traceparent_is_ignored_with_its_state(value: str) -> None:
    assert read(("traceparent", value), ("tracestate", "a=1")) == TraceContext()


def test_a_repeated_traceparent_is_ignored() -> None:
    assert read(("traceparent", PARENT), ("traceparent", PARENT)) == TraceContext()


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["a=1"], "a=1"),
        (["a=1,b=2", "c=3"], "a=1,b=2,c=3"),
        (["a=" + "x" * 510], "a=" + "x" * 510),
        (["a=" + "x" * 511], None),
        ([""], None),
        (["a=\u00e9"], None),
        (["a=\t"], "a="),
        (["a=\x7f1"], None),
    ],
)
def test_a_tracestate_comes_with_a_traceparent_only(lines: list[str], kept: str | None) -> None:
    state = [("tracestate", line) for line in lines]
    assert read(*state) is NO_TRACE_CONTEXT
    assert read(("traceparent", PARENT), *state) == TraceContext(PARENT, kept)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("order 4711, second try", "order 4711, second try"),
        ("x" * 512, "x" * 512),
        ("x" * 513, None),
        ("", None),
        ("   ", None),
        ("a\tb", None),
        ("a\x1b[31m", None),
        ("caf\u00e9", None),
        ("\udcff", None),
    ],
)
def test_a_client_request_id_is_printable_and_bounded(value: str, kept: str | None) -> None:
    assert read(("x-client-request-id", value)).client_request_id == kept


def test_a_repeated_client_request_id_is_ignored() -> None:
    both = [("X-Client-Request-Id", "a"), ("X-Client-Request-Id", "b")]
    assert read(("traceparent", PARENT), *both) == TraceContext(PARENT)


@pytest.mark.parametrize(
    "credential",
    [
        ("Authorization", "Bearer gk-secret"),
        ("Authorization", f"Basic {b64encode(b'ann:gk-secret').decode()}"),
        ("Authorization", f"Basic {b64encode(b':gk-secret').decode()}"),
        ("Authorization", f"basic  {b64encode(b'gk-secret:').decode()}"),
        ("api-key", "gk-secret"),
        ("api-key", " gk-secret "),
    ],
)
def test_a_credential_of_the_request_is_no_id_and_no_state(credential: tuple[str, str]) -> None:
    ids = [("x-client-request-id", "of gk-secret"), ("tracestate", "key=gk-secret")]
    assert read(credential, ("traceparent", PARENT), *ids) == TraceContext(PARENT)
    assert read(credential, ("x-client-request-id", "bearer")).client_request_id == "bearer"
    assert read(credential, ("traceparent", f"01-{TRACE}-{SPAN}-01-gk-secret")) == TraceContext()
