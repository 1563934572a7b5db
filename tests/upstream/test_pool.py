"""The pool of accounts: who is asked, in which order, and when another account may be."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Charge, GatewayError, UpstreamFailure
from gateway.images import UpstreamAnswer
from gateway.upstream import failures
from gateway.upstream.accounts import Account, Accounts, UnroutableError, check_accounts
from gateway.upstream.attempts import StreamHandlers
from gateway.upstream.observer import Pace, Unobserved
from gateway.upstream.pool import MAX_RESTING, REST_SECONDS, Pool, open_pool
from gateway.upstream.session import ClientSettings
from tests.ports import closed_port
from tests.rows import each_row
from tests.scripted_upstream import (
    GOOD,
    PIXELS,
    REQUEST,
    Clock,
    Reply,
    cut,
    error,
    hang,
    http,
    reset,
    upstream,
)

KEYS = ("sk-secret-of-the-first", "sk-secret-of-the-second")
HTML = http(502, b"<html>Bad gateway</html>", Content_Type="text/html")
REFUSAL = error(403, "moderation_blocked")
STREAM_ERROR = http(
    200,
    b'event: error\ndata: {"type": "error", "error": {"message": "m", "code": "server_error"}}\n\n',
    Content_Type="text/event-stream",
)


@dataclass
class Recorded:
    """Records whom a purchase asks."""

    refuses: Sequence[str] = ()
    waited_seconds: float = 0.0
    approached: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    async def prepare_attempt(self, account: str) -> UpstreamFailure | None:
        if account in self.refuses:
            return failures.all_passed_over()
        self.approached.append(account)
        return None

    def note_failure(self, account: str, failure: UpstreamFailure, *, is_final: bool) -> None:
        if not is_final:
            self.names.append(account)


@contextlib.asynccontextmanager
async def pool_of(
    urls: Sequence[str], *, clock: Clock | None = None, random: float = 0.0, **of_client: Any
) -> AsyncIterator[Pool]:
    """Accounts `a`, `b`, … in this order of priority."""
    clock = clock or Clock()
    names = "abcdef"[: len(urls)]
    accounts = Accounts(
        [Account(name, "default", priority=number) for number, name in enumerate(names, start=1)]
    )
    keys = [*KEYS, *(f"sk-secret-number-{number}" for number in range(len(urls)))]
    settings = [
        ClientSettings(
            base_url=url,
            api_key=key,
            secrets_of_others=tuple(other for other in keys[: len(urls)] if other != key),
            **of_client,
        )
        for url, key in zip(urls, keys, strict=False)
    ]
    pace = replace(clock.pace, random=lambda: random)
    async with open_pool(accounts, settings, observe=lambda name: Unobserved(), pace=pace) as pool:
        yield pool


async def buy(
    pool: Pool, *, streams: bool = False, refuses: Sequence[str] = ()
) -> tuple[UpstreamAnswer | UpstreamFailure, list[str]]:
    """The answer or the failure, and the accounts that were asked."""
    rerouting, opened = Recorded(refuses), []

    async def on_partial(_image: object) -> None: ...

    async def on_open() -> None:
        opened.append(True)

    stream = StreamHandlers(on_partial, on_open) if streams else None
    request = replace(REQUEST, stream=streams)
    try:
        answer: Any = await pool.buy(
            request, pool.candidates(request.model), images=1, stream=stream, rerouting=rerouting
        )
    except UpstreamFailure as failure:
        answer = failure
    assert len(opened) <= 1
    return answer, rerouting.approached


# ── failover: each failure, at the first and at the second account, plain and streamed ──────────

KINDS: dict[str, tuple[Reply, bool, bool]] = {
    # reply, is certainly free, is retried
    "429": (error(429, "rate_limit_exceeded"), True, True),
    "429 quota": (error(429, "insufficient_quota"), True, False),
    "503": (error(503), True, True),
    "503 of an edge": (http(503, b"<html>later</html>"), True, True),
    "401": (error(401, "invalid_api_key"), True, False),
    "403": (error(403), True, False),
    "404 for the model": (error(404, "model_not_found"), True, False),
    "billing limit": (error(400, "billing_hard_limit_reached"), True, False),
    "402 billing": (error(402, "billing_not_active"), True, False),
    "404 of a path": (http(404, b'{"detail": "Not Found"}'), False, False),
    "400": (error(400, "invalid_value"), False, False),
    "400 for the model": (error(400, "model_not_found"), False, False),
    "403 for the content": (REFUSAL, False, False),
    "409": (error(409), False, False),
    "500": (error(500), False, False),
    "502 of an edge": (HTML, False, False),
    "529": (error(529), False, False),
    "cut": (cut, False, False),
    "reset": (reset, False, False),
    "200 with an error": (http(200, b'{"error": {"message": "m", "code": "429"}}'), False, False),
    "200 of another service": (http(200, b"<html></html>"), False, False),
    "200 with an error event": (STREAM_ERROR, False, False),
}


@each_row("streams", [False, True], ids=["plain", "stream"])
@each_row("kind", KINDS)
async def test_each_failure_at_the_first_and_at_the_second_account(
    kind: str, streams: bool
) -> None:
    reply, is_free, is_retried = KINDS[kind]
    clock = Clock()
    async with upstream(reply) as failing, upstream(GOOD) as good, upstream(error(401)) as refusing:
        async with pool_of([failing.url, good.url], clock=clock) as pool:
            answer, asked = await buy(pool, streams=streams)
        assert asked == (["a", "b"] if is_free else ["a"])
        assert isinstance(answer, UpstreamAnswer) == is_free
        assert (len(failing.bodies), len(good.bodies)) == (1, int(is_free))
        assert not clock.slept  # the next account is asked without a pause
        if isinstance(answer, UpstreamFailure):
            assert answer.upstream == "a"

        failing.bodies.clear()
        async with pool_of([refusing.url, failing.url], clock=clock) as pool:
            answer, asked = await buy(pool, streams=streams)
        times = 3 if is_retried else 1
        assert asked == ["a", *["b"] * times]
        assert len(failing.bodies) == times
        assert isinstance(answer, UpstreamFailure)
        assert answer.upstream == "b"
        assert len(clock.slept) == times - 1
        if is_free:
            assert answer.charge is Charge.FREE


async def test_an_account_that_cannot_be_reached_charges_nothing() -> None:
    with closed_port() as port:
        closed = f"http://127.0.0.1:{port}/v1"
        unknown = "http://no-such-host.invalid/v1"
        async with upstream(GOOD) as good:
            plain = good.url.replace("http://", "https://")  # no TLS there
            urls = [closed, unknown, plain, good.url]
            async with pool_of(urls, connect_timeout_seconds=10) as pool:
                answer, asked = await buy(pool)
            assert asked == ["a", "b", "c", "d"]
            assert isinstance(answer, UpstreamAnswer)
            assert answer.images[0].data == PIXELS


async def test_a_time_out_is_not_tried_again() -> None:
    async with upstream(hang) as slow, upstream(GOOD) as good:
        async with pool_of([slow.url, good.url], timeout_seconds=0.05) as pool:
            answer, asked = await buy(pool)
        assert asked == ["a"]
        assert isinstance(answer, UpstreamFailure)
        assert (answer.status, answer.charge) == (504, Charge.PRESUMED)
        assert not good.bodies


async def test_retries_follow_over_all_accounts_and_at_most_twice() -> None:
    later = error(429, "rate_limit_exceeded", Retry_After="4")
    clock = Clock()
    async with upstream(later) as first, upstream(error(503)) as second:
        async with pool_of([first.url, second.url], clock=clock) as pool:
            answer, asked = await buy(pool)
        # The second account may be asked again first, and then once more before the first one.
        assert asked == ["a", "b", "b", "b"]
        assert clock.slept == [0.5, 1.0]
        assert isinstance(answer, UpstreamFailure)
        assert answer.status == 503

    async with upstream(later, GOOD) as first, upstream(error(401)) as second:
        async with pool_of([first.url, second.url], clock=clock) as pool:
            answer, asked = await buy(pool)
        assert asked == ["a", "b", "a"]
        assert isinstance(answer, UpstreamAnswer)


async def test_the_failure_that_a_later_request_may_not_meet_is_answered() -> None:
    limited = error(429, "rate_limit_exceeded", Retry_After="60")
    async with (
        upstream(limited) as first,
        upstream(error(401)) as second,
        pool_of([first.url, second.url]) as pool,
    ):
        answer, _ = await buy(pool)
    assert isinstance(answer, UpstreamFailure)
    assert (answer.status, answer.upstream) == (429, "a")


async def test_an_account_that_is_passed_over_is_not_asked() -> None:
    async with upstream(error(401)) as first, upstream(GOOD) as second, upstream(GOOD) as third:
        async with pool_of([first.url, second.url, third.url]) as pool:
            answer, asked = await buy(pool, refuses=["b"])
        assert asked == ["a", "c"]
        assert isinstance(answer, UpstreamAnswer)
        assert not second.bodies


# ── rest, breaker, service ──────────────────────────────────────────────────────────────────


async def test_an_account_that_refuses_a_model_rests_for_that_model() -> None:
    clock = Clock()
    async with (
        upstream(error(401)) as first,
        upstream(GOOD) as second,
        pool_of([first.url, second.url], clock=clock) as pool,
    ):
        assert (await buy(pool))[1] == ["a", "b"]
        assert (await buy(pool))[1] == ["b"]
        assert [one.name for one in pool.candidates("another")] == ["a", "b"]
        assert list(pool.resting("a")) == ["painter"]
        clock.now += REST_SECONDS
        assert (await buy(pool))[1] == ["a", "b"]


async def test_models_that_only_clients_name_are_not_remembered_without_bound() -> None:
    async with pool_of(["http://127.0.0.1:1"]) as pool:
        for number in range(3 * MAX_RESTING):
            pool._rest("a", f"model-{number}")
        assert len(pool._resting) == MAX_RESTING
        assert pool.rests("a", f"model-{3 * MAX_RESTING - 1}")


async def test_if_all_accounts_rest_they_are_asked_all_the_same() -> None:
    async with upstream(error(401)) as first, upstream(error(403), GOOD) as second:
        async with pool_of([first.url, second.url]) as pool:
            assert isinstance((await buy(pool))[0], UpstreamFailure)
            answer, asked = await buy(pool)
        assert asked == ["a", "b"]
        assert isinstance(answer, UpstreamAnswer)


async def test_a_breaker_counts_the_purchases_of_its_own_account() -> None:
    clock = Clock()
    async with (
        upstream(error(503)) as first,
        upstream(GOOD) as second,
        pool_of(
            [first.url, second.url], clock=clock, breaker_failures=2, breaker_open_seconds=10
        ) as pool,
    ):
        assert [(await buy(pool))[1] for _ in range(3)] == [["a", "b"], ["a", "b"], ["b"]]
        assert [pool.client(name).is_breaker_open for name in "ab"] == [True, False]
        clock.now += 10
        assert (await buy(pool))[1] == ["a", "b"]  # the probe fails, and it opens again
        assert (await buy(pool))[1] == ["b"]


async def test_with_every_breaker_open_nothing_is_sent() -> None:
    async with upstream(error(503)) as first, upstream(error(503)) as second:
        async with pool_of([first.url, second.url], breaker_failures=1) as pool:
            await buy(pool)
            sent = len(first.bodies) + len(second.bodies)
            answer, asked = await buy(pool)
        assert isinstance(answer, UpstreamFailure)
        assert (answer.code, asked) == ("upstream_unavailable", [])
        assert len(first.bodies) + len(second.bodies) == sent


async def test_an_open_breaker_is_answered_rather_than_the_refusal_of_another_account() -> None:
    async with (
        upstream(error(503)) as first,
        upstream(GOOD, error(401)) as second,
        pool_of([first.url, second.url], breaker_failures=1) as pool,
    ):
        assert isinstance((await buy(pool))[0], UpstreamAnswer)
        answer, asked = await buy(pool)
        assert asked == ["b"]
        assert isinstance(answer, UpstreamFailure)
        # The first account may soon be asked again, so the client should retry.
        assert (answer.code, answer.upstream) == ("upstream_unavailable", "a")
        # Now the second one rests.
        answer, asked = await buy(pool)
        assert asked == []
        assert isinstance(answer, UpstreamFailure)
        assert answer.code == "upstream_unavailable"


async def test_an_account_out_of_service_is_not_asked() -> None:
    async with (
        upstream(GOOD) as first,
        upstream(GOOD) as second,
        pool_of([first.url, second.url]) as pool,
    ):
        disabled = {"a"}
        pool.is_disabled = disabled.__contains__
        assert (await buy(pool))[1] == ["b"]
        disabled.add("b")
        with pytest.raises(GatewayError) as refused:
            pool.candidates("painter")
    assert refused.value.code == "upstream_unavailable"
    assert "painter" in refused.value.message


async def test_an_account_never_shows_the_key_of_another() -> None:
    quoting = json.dumps({"error": {"message": f"{KEYS[0]} is wrong", "code": KEYS[0]}}).encode()
    async with (
        upstream(error(401)) as first,
        upstream(http(400, quoting)) as second,
        pool_of([first.url, second.url]) as pool,
    ):
        answer, asked = await buy(pool)
    assert asked == ["a", "b"]
    assert isinstance(answer, UpstreamFailure)
    assert KEYS[0] not in f"{answer.message} {answer.code} {answer.report}"


async def test_an_account_gets_its_own_name_of_the_model() -> None:
    async with (
        upstream(error(401)) as first,
        upstream(GOOD) as second,
        pool_of([first.url, second.url]) as pool,
    ):
        pool.accounts = Accounts(
            [
                replace(account, models={"painter": f"painter-of-{account.name}"})
                for account in pool.accounts
            ]
        )
        await buy(pool)
    names = [json.loads(script.bodies[0])["model"] for script in (first, second)]
    assert names == ["painter-of-a", "painter-of-b"]


# ── order ───────────────────────────────────────────────────────────────────────────────────


def order_of(accounts: Sequence[Account], *draws: float) -> list[str]:
    left = list(draws)
    pool = Pool(Accounts(accounts), [_Client()] * len(accounts), Pace(random=lambda: left.pop(0)))  # type: ignore[list-item]
    return [account.name for account in pool.candidates("painter")]


class _Client:
    def admits(self) -> bool:
        return True


def test_priority_comes_first_and_weights_are_chances() -> None:
    accounts = [
        Account("late", "default", priority=2),
        Account("rare", "default", weight=1),
        Account("often", "default", weight=3),
        Account("never", "default", weight=0),
    ]
    assert order_of(accounts, 0.2, 0.0, 0.0) == ["rare", "often", "late"]
    assert order_of(accounts, 0.25, 0.0, 0.0) == ["often", "rare", "late"]
    points = [number / 400 for number in range(400)]
    first = Counter(order_of(accounts, point, 0.0, 0.0)[0] for point in points)
    assert first == {"rare": 100, "often": 300}


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=2, max_size=6),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6),
)
def test_every_account_with_a_weight_is_asked_once_in_order_of_priority(
    given_accounts: list[tuple[int, int]], draws: list[float]
) -> None:
    accounts = [
        Account(str(number), "default", priority=priority, weight=weight)
        for number, (priority, weight) in enumerate(given_accounts)
    ]
    expected = {account.name for account in accounts if account.weight}
    if not expected:
        return
    ordered = order_of(accounts, *draws)
    assert sorted(ordered) == sorted(expected)
    priorities = [given_accounts[int(name)][0] for name in ordered]
    assert priorities == sorted(priorities)


# ── what cannot be routed ───────────────────────────────────────────────────────────────────


def account(name: str, **given_fields: Any) -> Account:
    return Account(name, given_fields.pop("group", "default"), **given_fields)


@pytest.mark.parametrize(
    ("accounts", "words"),
    [
        ([account("a", models={"paintre": "x"})], ["'a'", "'paintre'", "'painter'", "passthrough"]),
        ([account("a"), account("b", group="azure")], ["group", "'painter'", "(a)", "(b)"]),
        ([account("a", weight=0), account("b", weight=0)], ["weight", "'painter'", "a, b"]),
        (
            [account("a"), account("b", models={"painter": "x"}, group="azure")],
            ["group", "'painter'"],
        ),
    ],
)
def test_accounts_that_cannot_be_routed_are_refused(
    accounts: list[Account], words: list[str]
) -> None:
    with pytest.raises(UnroutableError) as refused:
        check_accounts(Accounts(accounts), ["painter", "sketcher"])
    for word in words:
        assert word in str(refused.value)


def test_two_services_may_have_groups_of_their_own() -> None:
    accounts = Accounts(
        [account("a", models={"painter": "p"}), account("b", models={"sketcher": "s"}, group="c")]
    )
    check_accounts(accounts, ["painter", "sketcher", "unserved"])
    assert [accounts.group_of(model) for model in ("painter", "sketcher")] == ["default", "c"]
    assert not accounts.having("unserved")


def test_price_factors_are_of_the_accounts_in_service() -> None:
    accounts = Accounts([account("a"), account("b", price_factor=Decimal("1.5"))])
    pool = Pool(accounts, [_Client(), _Client()], Pace())  # type: ignore[list-item]
    assert pool.price_factor("painter") == Decimal("1.5")
    pool.is_disabled = {"b"}.__contains__
    assert pool.price_factor("painter") == 1
