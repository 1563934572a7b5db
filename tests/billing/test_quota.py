"""Limits of a key, its team and everyone, on each store: all or nothing, and who is told what."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from gateway.billing import limit_headers, limit_refusals, quota
from gateway.errors import LimitExceeded
from gateway.images import Amounts, LimitRule, Principal
from gateway.store.batch import Batch
from gateway.store.commands import Admission, CounterState, Reservation
from gateway.store.protocol import Store
from tests.conftest import OpenStore
from tests.principals import Limits, make_principal

ONE = Amounts(images=1, tokens=100, usd_micros=1_000_000)
SCOPES = ("key", "team", "everyone")
NAMED = {"key": "key 'alice'", "team": "team 'art'", "everyone": "everyone"}


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


def limited(scope: str, limits: Limits, *, key: str = "alice") -> Principal:
    """A key of the team `art`, with limits on one of the three."""
    by_scope = {name: limits if name == scope else None for name in SCOPES}
    return make_principal(
        key,
        by_scope["key"],
        team="art",
        team_limits=by_scope["team"],
        everyone_limits=by_scope["everyone"],
    )


async def reserve(
    store: Store, principal: Principal, estimate: Amounts = ONE
) -> tuple[Reservation, str]:
    batch, purchase = Batch(store), uuid.uuid4().hex
    reservation = quota.reserve(
        batch, principal, purchase, worker="w", estimate=estimate, payload=b""
    )
    await batch.execute()
    return reservation.value, purchase


async def settle(store: Store, purchase: str, charge: Amounts) -> None:
    batch = Batch(store)
    quota.settle(batch, purchase, charge, record=None)
    await batch.execute()


async def admit(store: Store, principal: Principal) -> Admission:
    batch = Batch(store)
    admission = quota.admit(batch, principal, peeks=True)
    await batch.execute()
    return admission.value


async def counted(store: Store, *limits: str) -> dict[str, list[CounterState]]:
    """The counters of the three scopes, by scope."""
    every = dict.fromkeys(limits, 10**9)
    principal = make_principal("alice", every, team="art", team_limits=every, everyone_limits=every)
    batch = Batch(store)
    peeked = quota.peek(batch, principal)
    await batch.execute()
    found: dict[str, list[CounterState]] = {}
    for state in quota.peeked_states(principal, peeked.value):
        found.setdefault(state.scope, []).append(state.counter)
    return found


def refusal_of(
    principal: Principal, reservation: Reservation, estimate: Amounts = ONE
) -> LimitExceeded:
    assert reservation.denied is not None
    return limit_refusals.refuse_reservation(principal, reservation, estimate, why=None)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("limit", "maximum"),
    [
        ("images_per_minute", 2),
        ("concurrent_requests", 2),
        ("images_per_day", 2),
        ("tokens_per_day", 299),
        ("usd_per_day", 2_500_000),
        ("usd_per_week", 2_500_000),
        ("usd_per_month", 2_500_000),
    ],
)
async def test_every_limit_of_every_scope_refuses_the_third_purchase_and_takes_nothing(
    store: Store, scope: str, limit: str, maximum: int
) -> None:
    principal = limited(scope, {limit: maximum})
    for _ in range(2):
        assert (await reserve(store, principal))[0].denied is None
    before = await counted(store, "images_per_day", "usd_per_month", "concurrent_requests")
    third, _ = await reserve(store, principal)

    error = refusal_of(principal, third)
    assert error.reason == limit
    assert error.message.startswith(f"Limit {limit} of {NAMED[scope]} reached: ")
    after = await counted(store, "images_per_day", "usd_per_month", "concurrent_requests")
    amounts = [
        [(state.used, state.reserved) for states in found.values() for state in states]
        for found in (before, after)
    ]
    assert amounts[0] == amounts[1]
    assert set(after) == {"key:alice", "team:art", "everyone"}


@pytest.mark.parametrize("scope", SCOPES)
async def test_an_admission_that_one_scope_refuses_takes_nothing_from_the_others(
    store: Store, scope: str
) -> None:
    limits = {name: {"requests_per_minute": 1 if name == scope else 9} for name in SCOPES}
    principal = make_principal(
        "alice",
        limits["key"],
        team="art",
        team_limits=limits["team"],
        everyone_limits=limits["everyone"],
    )
    assert (await admit(store, principal)).denied is None
    refused = await admit(store, principal)

    error = limit_refusals.refuse_admission(principal, refused)
    assert f"Limit requests_per_minute of {NAMED[scope]} reached" in error.message
    assert [state.used for state in refused.states] == [1, 1, 1]


async def test_the_keys_of_a_team_share_its_budget_and_other_teams_do_not(store: Store) -> None:
    budget = {"usd_per_month": 3_000_000}
    keys = [make_principal(f"k{i}", team="art", team_limits=budget) for i in range(5)]
    other = make_principal("other", team="ads", team_limits=budget)
    denied = [(await reserve(store, key))[0].denied for key in keys]

    assert [one is None for one in denied] == [True, True, True, False, False]
    assert (await reserve(store, other))[0].denied is None


async def test_a_budget_that_is_set_later_counts_open_and_settled_purchases(store: Store) -> None:
    unlimited = make_principal("alice", team="art")
    for settled in (True, False):
        _, purchase = await reserve(store, unlimited)
        if settled:
            await settle(store, purchase, ONE)
    limits = {"usd_per_month": 2_500_000, "concurrent_requests": 1}
    for limit, maximum in limits.items():
        for scope in SCOPES:
            principal = limited(scope, {limit: maximum})
            refused = refusal_of(principal, (await reserve(store, principal))[0])
            assert f"Limit {limit} of {NAMED[scope]}" in refused.message


async def test_a_refusal_names_what_is_used_and_reserved_and_no_other_key(store: Store) -> None:
    budget = {"usd_per_day": 2_500_000}
    _, settled = await reserve(store, make_principal("bob", team="art", team_limits=budget))
    await settle(store, settled, Amounts(1, 50, 900_000))
    await reserve(store, make_principal("carol", team="art", team_limits=budget))
    alice = limited("team", budget)
    error = refusal_of(alice, (await reserve(store, alice))[0])

    assert error.message.startswith(
        "Limit usd_per_day of team 'art' reached: limit $2.500000, used $0.900000, "
        "reserved $1.000000. This request needs up to $1.000000. It resets in "
    )
    assert error.headers == {"x-should-retry": "false"}
    assert not any(name in error.message for name in ("alice", "bob", "carol"))


async def test_headers_show_the_tightest_limit_of_all_scopes(store: Store) -> None:
    principal = make_principal(
        "alice",
        {"images_per_day": 9, "requests_per_minute": 2},
        team="art",
        team_limits={"images_per_day": 5, "tokens_per_day": LimitRule(1, "shadow")},
        everyone_limits={"images_per_day": 50, "requests_per_minute": 10},
    )
    headers = limit_headers.rate_headers(
        quota.admission_states(principal, await admit(store, principal))
    )

    assert headers["x-ratelimit-limit-images"] == headers["x-ratelimit-remaining-images"] == "5"
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in headers  # in shadow mode


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_follower_is_refused_alike_if_the_same_limit_is_its_own(
    store: Store, scope: str
) -> None:
    budget = {"usd_per_day": 500_000}
    leader = limited(scope, budget, key="leader")
    error = refusal_of(leader, (await reserve(store, leader))[0])
    refusal = error.refusal
    assert refusal is not None

    def refused(follower: Principal, estimate: Amounts = ONE) -> bool:
        alike = limit_refusals.refuse_alike(follower, refusal, estimate, why=None)
        assert alike is None or alike.message == error.message
        return alike is not None

    assert refused(leader)
    assert refused(limited(scope, budget, key="another")) == (scope != "key")
    elsewhere = make_principal("another", team="ads", team_limits=budget)
    assert not refused(elsewhere)
    assert not refused(limited(scope, {"usd_per_day": 900_000}, key="leader"))  # raised meanwhile
    assert not refused(limited(scope, {"usd_per_day": LimitRule(500_000, "shadow")}, key="leader"))
    assert not refused(leader, Amounts(1, 100, 400_000))  # may fit


async def test_a_follower_compares_its_estimate_with_that_of_all_accounts(store: Store) -> None:
    """The leader left out dear accounts, which the follower's estimate still holds."""
    alice = limited("key", {"usd_per_day": 500_000})
    error = limit_refusals.refuse_reservation(
        alice,
        (await reserve(store, alice))[0],
        ONE,
        why=None,
        first_estimate=Amounts(1, 100, 3_000_000),
    )
    assert "needs up to $1.000000" in error.message
    refusal = error.refusal
    assert refusal is not None
    smaller, same = (Amounts(1, 100, micros) for micros in (1_500_000, 3_000_000))
    assert limit_refusals.refuse_alike(alice, refusal, smaller, why=None) is None
    assert limit_refusals.refuse_alike(alice, refusal, same, why=None) is not None


async def test_a_refusal_of_an_older_gateway_is_that_of_its_key(store: Store) -> None:
    alice = limited("key", {"usd_per_day": 500_000})
    refusal = refusal_of(alice, (await reserve(store, alice))[0]).refusal
    assert refusal is not None
    fields = {name: getattr(refusal, name) for name in refusal.__slots__ if name != "subject"}
    assert limit_refusals.refuse_alike(alice, type(refusal)(**fields), ONE, why=None) is not None


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_limit_in_shadow_mode_counts_and_names_what_it_would_refuse(
    store: Store, scope: str
) -> None:
    shadows = {
        name: LimitRule(maximum, "shadow")
        for name, maximum in {"usd_per_day": 1_500_000, "images_per_minute": 1}.items()
    }
    principal = limited(scope, shadows)
    first, _ = await reserve(store, principal)
    second, purchase = await reserve(store, principal)

    assert (first.denied, second.denied) == (None, None)
    assert quota.shadowed_by_reservation(principal, first) == []
    shadowed = quota.shadowed_by_reservation(principal, second)
    assert {state.limit.name for state in shadowed} == set(shadows)
    assert {state.scope.partition(":")[0] for state in shadowed} == {scope}
    states = await counted(store, "usd_per_day")
    assert {counter.reserved for found in states.values() for counter in found} == {2_000_000}
    await settle(store, purchase, ONE)
    states = await counted(store, "usd_per_day")
    assert {counter.used for found in states.values() for counter in found} == {1_000_000}


def test_a_principal_with_shadow_limits_alone_is_not_limited() -> None:
    shadow = make_principal("k", {"usd_per_day": LimitRule(1, "shadow")})
    assert (shadow.has_limits, shadow.is_limited) == (True, False)
    for scope in SCOPES:
        limit = limited(scope, {"usd_per_day": 1})
        assert (limit.has_limits, limit.is_limited) == (True, True)
        assert not limit.without_limits().has_limits
