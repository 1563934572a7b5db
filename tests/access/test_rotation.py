"""Rotation of a key's secret on both stores: overlaps, their bound, and old secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.access.audit import Actor, Audit
from gateway.access.key_records import MAX_OVERLAP_SECONDS, MAX_SECRETS, parse_overlap, parse_spec
from gateway.access.key_spaces import SECRETS, Credential, hash_secret
from gateway.access.keys import Keys
from gateway.errors import GatewayError, IncorrectKey, InvalidRequest
from gateway.store.batch import execute
from gateway.store.commands import Get
from tests.access.conftest import NOW, Clock
from tests.conftest import OpenStore

ADMIN = Actor("api", "admin", "192.0.2.1")
DAY = 86_400


@pytest.fixture
async def keys(open_store: OpenStore, clock: Clock) -> AsyncIterator[Keys]:
    async with open_store() as store:
        yield Keys(store, clock=clock)


async def works(keys: Keys, secret: str) -> bool:
    try:
        await keys.confirm(Credential.of(secret))
    except IncorrectKey:
        return False
    return True


async def is_stored(keys: Keys, secret: str) -> bool:
    return await execute(keys._store, Get(SECRETS, hash_secret(secret))) is not None


async def test_without_an_overlap_the_new_secret_replaces_all_others(keys: Keys):
    record, first = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    _, second = await keys.rotate(record.id, overlap_seconds=DAY, actor=ADMIN)
    assert [await works(keys, s) for s in (first, second)] == [True, True]
    rotated, third = await keys.rotate(record.id, actor=ADMIN)
    assert [await works(keys, s) for s in (first, second, third)] == [False, False, True]
    assert [await is_stored(keys, s) for s in (first, second, third)] == [False, False, True]
    assert rotated.prefix == third[:6]
    assert "former_secrets_expire_at" not in rotated.public()


async def test_a_former_secret_works_until_its_overlap_ends(keys: Keys, clock: Clock):
    record, first = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    rotated, second = await keys.rotate(record.id, overlap_seconds=60, actor=ADMIN)
    assert rotated.public()["former_secrets_expire_at"] == [NOW + 60]
    assert keys.find_known(Credential.of(first)) is None
    clock.now = NOW + 59
    assert await works(keys, first)
    assert keys.find_known(Credential.of(first)) is not None
    clock.now = NOW + 60
    assert keys.find_known(Credential.of(first)) is None
    assert not await works(keys, first)
    assert await works(keys, second)


async def test_an_overlap_never_prolongs_an_earlier_one(keys: Keys, clock: Clock):
    record, first = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    await keys.rotate(record.id, overlap_seconds=60, actor=ADMIN)
    rotated, _ = await keys.rotate(record.id, overlap_seconds=DAY, actor=ADMIN)
    assert rotated.public()["former_secrets_expire_at"] == [NOW + DAY, NOW + 60]
    shortened, _ = await keys.rotate(record.id, overlap_seconds=30, actor=ADMIN)
    assert shortened.public()["former_secrets_expire_at"] == [NOW + 30] * 3
    clock.now = NOW + 30
    assert not await works(keys, first)


async def test_at_most_five_secrets_work_at_once(keys: Keys, clock: Clock):
    record, first = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    for _ in range(MAX_SECRETS - 1):
        await keys.rotate(record.id, overlap_seconds=DAY, actor=ADMIN)
    assert await works(keys, first)
    with pytest.raises(InvalidRequest, match="has 5 secrets that are still valid") as refused:
        await keys.rotate(record.id, overlap_seconds=DAY, actor=ADMIN)
    assert (refused.value.status, refused.value.param) == (400, "overlap")
    clock.now = NOW + DAY
    rotated, _ = await keys.rotate(record.id, overlap_seconds=DAY, actor=ADMIN)
    assert len(rotated.secrets) == 2
    assert not await is_stored(keys, first)


async def test_ended_secrets_are_deleted_by_any_change_and_in_the_background(
    keys: Keys, clock: Clock
):
    made = []
    for name in ("a", "b", "c"):
        record, secret = await keys.create(parse_spec({"name": name}), actor=ADMIN)
        _, current = await keys.rotate(record.id, overlap_seconds=60, actor=ADMIN)
        made.append((record.id, secret, current))
    assert await keys.forget_ended_secrets() == 0
    clock.now = NOW + 60
    await keys.change(made[0][0], {"team": "art"}, actor=ADMIN)
    assert [await is_stored(keys, former) for _, former, _ in made] == [False, True, True]
    assert await keys.forget_ended_secrets() == 2
    assert await keys.forget_ended_secrets() == 0
    assert [await is_stored(keys, former) for _, former, _ in made] == [False] * 3
    assert [await works(keys, current) for *_, current in made] == [True] * 3


async def test_a_revoked_key_leaves_no_secret_and_cannot_be_rotated(keys: Keys):
    record, first = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    _, second = await keys.rotate(record.id, overlap_seconds=DAY, actor=ADMIN)
    await keys.revoke(record.id, actor=ADMIN)
    assert [await is_stored(keys, s) for s in (first, second)] == [False, False]
    with pytest.raises(GatewayError) as refused:
        await keys.rotate(record.id, actor=ADMIN)
    assert refused.value.code == "key_not_found"


async def test_the_audit_has_every_change_and_no_secret_or_hash(keys: Keys, clock: Clock):
    spec = parse_spec({"name": "a", "limits": {"usd_per_day": 1.5}})
    record, first = await keys.create(spec, actor=ADMIN)
    clock.now += 1
    await keys.change(record.id, {"team": "art", "limits": {"usd_per_day": 2}}, actor=ADMIN)
    clock.now += 1
    await keys.change(record.id, {"team": "art"}, actor=ADMIN)  # changes nothing
    _, second = await keys.rotate(record.id, overlap_seconds=60, actor=ADMIN)
    clock.now += 1
    await keys.revoke(record.id, actor=ADMIN)
    entries = await Audit(keys._store, clock=clock).read()
    assert [entry.event.action for entry in entries] == [
        *("key.revoke", "key.rotate", "key.change", "key.create")
    ]
    assert {(e.event.object, e.event.actor) for e in entries} == {("key:a", ADMIN)}
    revoked, rotated, changed, created = (entry.event for entry in entries)
    assert created.before is None
    assert created.after is not None
    assert created.after["limits"] == {"usd_per_day": 1.5}
    assert changed.before == {"id": record.id, "team": None, "limits": {"usd_per_day": 1.5}}
    assert changed.after == {"id": record.id, "team": "art", "limits": {"usd_per_day": 2}}
    assert rotated.after == {
        "id": record.id,
        "prefix": second[:6],
        "former_secrets_expire_at": [NOW + 62],
    }
    assert revoked.before is not None
    assert (revoked.before["team"], revoked.after) == ("art", None)
    text = b"".join(entry.event.encode() for entry in entries).decode()
    for secret in (first, second):
        assert secret not in text
        assert hash_secret(secret) not in text


async def test_a_change_that_fails_leaves_no_event(keys: Keys, clock: Clock):
    await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    record, _ = await keys.create(parse_spec({"name": "b"}), actor=ADMIN)
    with pytest.raises(GatewayError):
        await keys.change(record.id, {"name": "a"}, actor=ADMIN)
    with pytest.raises(InvalidRequest):
        await keys.change(record.id, {"scope": "all"}, actor=ADMIN)
    assert len(await Audit(keys._store, clock=clock).read()) == 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), ("0", 0), ("24h", DAY), (1.5, 2), ("90d", MAX_OVERLAP_SECONDS), ("500ms", 1)],
)
def test_an_overlap_is_a_duration_or_zero(value: object, seconds: int):
    assert parse_overlap(value) == seconds


@pytest.mark.parametrize(
    "value", [-1, "-1h", "91d", "24 hours", True, False, [], {}, "", "9" * 400, float("inf")]
)
def test_another_overlap_is_refused_by_name(value: object):
    with pytest.raises(InvalidRequest, match="Invalid 'overlap'") as refused:
        parse_overlap(value)
    assert (refused.value.status, refused.value.param) == (400, "overlap")
