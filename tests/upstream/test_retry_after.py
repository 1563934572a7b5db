"""`Retry-After` of upstream: seconds, and the three forms of a date (RFC 9110 §5.6.7, §10.2.3)."""

from __future__ import annotations

import pytest

from gateway.upstream.openai.errors import parse_error
from gateway.upstream.retry_after import parse_date
from tests.rows import each_row
from tests.scripted_upstream import REQUEST, Clock, client_of, error, upstream

AT = 784_111_777.0
"""Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFC's examples."""

DATES = {
    "Sun, 06 Nov 1994 08:49:37 GMT": AT,
    "Sunday, 06-Nov-94 08:49:37 GMT": AT,
    "Sun Nov  6 08:49:37 1994": AT,
    "Wed Nov 16 08:49:37 1994": AT + 10 * 86_400,
    " Sun, 06 Nov 1994 08:49:37 GMT ": AT,
    "sun, 06 nov 1994 08:49:37 gmt": AT,
    "Sun, 6 Nov 1994 08:49:37 UTC": AT,
    "Sat, 31 Dec 1994 23:59:60 GMT": 788_918_400.0,  # a leap second
    "Thu, 29 Feb 1996 00:00:00 GMT": 825_552_000.0,
    # A year of two digits is at most 50 years ahead.
    "Sunday, 06-Nov-44 08:49:37 GMT": 2_362_034_977.0,
    "Sunday, 06-Nov-45 08:49:37 GMT": -762_189_023.0,
}

NO_DATES = [
    "",
    "soon",
    "Sun, 06 Nov 1994 08:49:37",
    "Sun, 06 Nov 1994 08:49:37 CET",
    "Sun, 06 Nov 1994 08:49:37 +0100",
    "Sun, 31 Feb 1994 08:49:37 GMT",
    "Mon, 29 Feb 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 24:49:37 GMT",
    "Sun, 06 Nov 1994 08:60:37 GMT",
    "Sun, 06 Nov 1994 08:49:61 GMT",
    "Sun, 06 Nov 0000 08:49:37 GMT",
    "Sun, 06 Nov 19994 08:49:37 GMT",
    "Sun, 06 Noc 1994 08:49:37 GMT",
    "Sun, ٠٦ Nov 1994 08:49:37 GMT",
    "1994-11-06T08:49:37Z",
    "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:38 GMT",
    "Sun, 06 Nov 1994 08:49:37 GMT" + " " * 100 + "x",
]


@pytest.mark.parametrize("text", DATES)
def test_a_date_is_read(text: str) -> None:
    assert parse_date(text, near=AT) == DATES[text]


@each_row("text", NO_DATES)
def test_anything_else_is_no_date(text: str) -> None:
    assert parse_date(text, near=AT) is None


SERVER_DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
RELAYED = [
    ({"Retry-After": "Sun, 06 Nov 1994 08:49:44 GMT"}, {"Retry-After": "7"}),
    ({"retry-after": "Sunday, 06-Nov-94 08:49:44 GMT"}, {"Retry-After": "7"}),
    ({"RETRY-AFTER": "Sun Nov  6 08:49:44 1994"}, {"Retry-After": "7"}),
    ({"Retry-After": "Sun, 06 Nov 1994 08:51:37 GMT"}, {"Retry-After": "120"}),
    (
        {"Retry-After": "Sun, 06 Nov 1994 08:51:38 GMT"},
        {"Retry-After": "120", "x-should-retry": "false"},
    ),
    (
        {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"},
        {"Retry-After": "120", "x-should-retry": "false"},
    ),
    ({"Retry-After": SERVER_DATE}, {}),
    ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, {}),
    ({"Retry-After": "in a moment"}, {}),
    ({"Retry-After": "1, 2"}, {}),
    (
        {"Retry-After": "Sun, 06 Nov 1994 08:49:44 GMT", "retry-after-ms": "6500"},
        {"Retry-After": "7", "retry-after-ms": "6500"},
    ),
    ({"Retry-After": "0", "retry-after-ms": "0"}, {}),
]


@each_row(("received", "relayed"), RELAYED)
@each_row("skew", [0.0, 0.4, -86_400.0, 1e9])
def test_a_date_is_relayed_in_seconds_from_upstreams_own_date(
    received: dict[str, str], relayed: dict[str, str], skew: float
) -> None:
    """Whatever the gateway's clock says."""
    failure = parse_error(429, {"Date": SERVER_DATE, **received}, b"", received_at=AT + skew)
    assert failure.headers == relayed


@pytest.mark.parametrize("date", [{}, {"Date": "yesterday"}], ids=["no Date", "no valid Date"])
def test_without_upstreams_date_the_gateways_clock_counts(date: dict[str, str]) -> None:
    received = {"Retry-After": "Sun, 06 Nov 1994 08:49:44 GMT", **date}
    assert parse_error(503, received, b"", received_at=AT + 0.4).headers == {"Retry-After": "7"}
    assert parse_error(503, received, b"", received_at=AT + 7).headers == {}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_waits_until_the_date(status: int) -> None:
    """But not for longer than retries are allowed."""
    clock = Clock(now=100.0)
    replies = [
        error(status, Date=SERVER_DATE, Retry_After="Sun, 06 Nov 1994 08:49:44 GMT"),
        error(status, Date=SERVER_DATE, Retry_After="Sun, 06 Nov 1994 08:49:20 GMT"),
        error(status, Date=SERVER_DATE, Retry_After="Sun, 06 Nov 1994 08:50:37 GMT"),
    ]
    async with upstream(*replies) as script, client_of(script, pace=clock.pace) as client:
        with pytest.raises(Exception, match="m") as raised:
            await client.generate(REQUEST, images=1)
        assert clock.slept == [7.0, 1.0]
        assert raised.value.headers["Retry-After"] == "60"
        clock.slept.clear()
        with pytest.raises(Exception, match="m"):
            await client.generate(REQUEST, images=1)
        assert clock.slept == []
