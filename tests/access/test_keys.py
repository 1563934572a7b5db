"""API keys on both stores: names, expiry, revocation, cache settings, newer records."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from gateway.access import limit_values
from gateway.access.access_file import AccessFile
from gateway.access.audit import Actor
from gateway.access.declared_keys import DeclaredKeys
from gateway.access.key_records import KeyRecord, SecretHash, parse_spec
from gateway.access.key_spaces import KEYS, SECRETS, Credential, hash_secret
from gateway.access.keys import Keys
from gateway.access.subject_records import SubjectRecord
from gateway.access.subjects import TEAMS, Subjects
from gateway.access.teams import Teams
from gateway.access.watched import list_watched
from gateway.errors import GatewayError, IncorrectKey, InvalidRequest
from gateway.images import LimitRule, Reuse
from gateway.limits import Limit, check_limits
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.protocol import Store
from tests.access.conftest import Clock
from tests.conftest import OpenStore
from tests.processor import longest_pause_seconds
from tests.stores import usually_on

ADMIN = Actor("api", "admin")


@pytest.fixture
async def keys(open_store: OpenStore, clock: Clock) -> AsyncIterator[Keys]:
    async with open_store() as store:
        yield Keys(store, clock=clock)


@pytest.fixture
async def other_worker(open_store: OpenStore, clock: Clock) -> AsyncIterator[Keys]:
    """The keys of another worker on the same store."""
    async with open_store() as store:
        yield Keys(store, clock=clock)


async def test_a_key_expires_and_is_active_again_without_its_expiry(
    keys: Keys, other_worker: Keys, clock: Clock
) -> None:
    record, secret = await keys.create(
        parse_spec({"name": "a", "expires_at": int(clock.now) + 10}), actor=ADMIN
    )
    assert (await other_worker.authenticate(Credential.of(secret))).principal.key_name == "a"
    clock.now += 11
    with pytest.raises(IncorrectKey):
        await other_worker.authenticate(Credential.of(secret))
    await keys.change(record.id, {"expires_at": None}, actor=ADMIN)
    assert (await other_worker.authenticate(Credential.of(secret))).principal.key_name == "a"


async def test_an_expired_key_frees_its_name_and_needs_another_to_become_active(
    keys: Keys, clock: Clock
) -> None:
    old, _ = await keys.create(
        parse_spec({"name": "b", "expires_at": int(clock.now) + 10}), actor=ADMIN
    )
    clock.now += 11
    await keys.create(parse_spec({"name": "b"}), actor=ADMIN)
    with pytest.raises(GatewayError) as refused:
        await keys.change(old.id, {"expires_at": None}, actor=ADMIN)
    assert refused.value.code == "name_taken"
    revived = await keys.change(old.id, {"expires_at": None, "name": "b2"}, actor=ADMIN)
    assert revived.name == "b2"
    await keys.change(old.id, {"name": "b3"}, actor=ADMIN)
    await keys.create(parse_spec({"name": "b2"}), actor=ADMIN)


async def test_a_revoked_key_frees_its_name_and_no_longer_authenticates(
    keys: Keys, other_worker: Keys
) -> None:
    record, secret = await keys.create(parse_spec({"name": "c"}), actor=ADMIN)
    await other_worker.authenticate(Credential.of(secret))
    await keys.revoke(record.id, actor=ADMIN)
    with pytest.raises(IncorrectKey):
        await other_worker.confirm(Credential.of(secret))
    await keys.create(parse_spec({"name": "c"}), actor=ADMIN)
    with pytest.raises(GatewayError) as not_found:
        await keys.change(record.id, {"name": "d"}, actor=ADMIN)
    assert not_found.value.status == 404


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("requests_per_minute", 10**13, "too large"),
        ("images_per_day", 2**60, "too large"),
        ("usd_per_month", 1e300, "too large"),
        ("usd_per_month", 0.0000001, "US dollars"),
        ("usd_per_month", float("inf"), "US dollars"),
        ("images_per_day", -1, "0 or more"),
        ("images_per_day", True, "whole number"),
        ("images_per_day", "5", "whole number"),
    ],
)
def test_a_limit_that_no_store_can_count_exactly_is_refused(
    limit: str, value: object, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_spec({"name": "x", "limits": {limit: value}})


def test_a_token_bucket_of_money_is_bounded_in_micro_dollars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both stores count it in 1/60,000,000 of a micro-dollar, exact below 2^53."""
    per_minute = Limit("usd_per_minute", "usd_micros", "minute")
    check_limits([per_minute])
    monkeypatch.setattr(limit_values, "LIMITS", {per_minute.name: per_minute})
    parse_spec({"name": "x", "limits": {"usd_per_minute": 100}})
    with pytest.raises(InvalidRequest, match="too large"):
        parse_spec({"name": "x", "limits": {"usd_per_minute": 101}})


# ── cache settings ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"scope": "everyone"},
            "scope",
            "Invalid 'scope': Input should be 'global', 'team' or 'key'.",
        ),
        (
            {"reuse": "sometimes"},
            "reuse",
            "or 'within:' and a duration such as 90s, 10m, 12h or 7d, but got 'sometimes'.",
        ),
        ({"reuse": "within:"}, "reuse", "but got 'within:'."),
        ({"reuse": 7}, "reuse", "Invalid 'reuse': Input should be a valid string."),
        (
            {"allow_no_cache": "no"},
            "allow_no_cache",
            "Invalid 'allow_no_cache': Input should be a valid boolean.",
        ),
    ],
)
def test_an_invalid_cache_setting_is_refused_with_the_valid_values(
    fields: dict[str, object], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_spec({"name": "x", **fields})
    assert (refused.value.param, refused.value.code) == (param, "invalid_value")
    assert refused.value.message.startswith(f"Invalid '{param}': ")
    assert refused.value.message.endswith(message)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("scop", "scope"), ("re_use", "reuse"), ("allow_no_cach", "allow_no_cache")],
)
def test_an_unknown_field_is_named_with_the_nearest_one(wrong: str, near: str) -> None:
    with pytest.raises(InvalidRequest, match=f"Did you mean '{near}'") as refused:
        parse_spec({"name": "x", wrong: "key"})
    assert (refused.value.param, refused.value.code) == (wrong, "unknown_parameter")


@pytest.mark.parametrize(
    ("written", "at"),
    [
        (5, 5),
        (1_798_761_600, 1_798_761_600),
        ("1798761600", 1_798_761_600),
        ("30d", 1000 + 30 * 86_400),
        ("1ms", 1001),
        ("1.5h", 1000 + 5400),
        (None, None),
    ],
)
def test_an_expiry_is_unix_seconds_or_a_duration_from_now(written: object, at: int | None) -> None:
    spec = parse_spec({"name": "x", "expires_at": written}, clock=lambda: 1000.0)
    assert spec.expires_at == at


@pytest.mark.parametrize("written", ["30", "999999999", "soon", "", "0d", "-1d", "1e12", "12 12d"])
def test_an_expiry_without_a_unit_or_meaning_is_refused_with_both_forms(written: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_spec({"name": "x", "expires_at": written}, clock=lambda: 1000.0)
    assert refused.value.param == "expires_at"
    assert "Unix seconds such as 1798761600, or a duration with its unit" in refused.value.message


async def test_cache_settings_are_merged_and_removed(keys: Keys, other_worker: Keys) -> None:
    spec = parse_spec({"name": "a", "scope": "key", "reuse": "never", "allow_no_cache": False})
    record, secret = await keys.create(spec, actor=ADMIN)
    made = await other_worker.authenticate(Credential.of(secret))
    await keys.change(record.id, {"reuse": "within:90s", "allow_no_cache": True}, actor=ADMIN)
    changed = await other_worker.confirm(Credential.of(secret))
    removed = await keys.change(
        record.id, {"scope": None, "reuse": None, "allow_no_cache": None}, actor=ADMIN
    )
    plain = await other_worker.confirm(Credential.of(secret))

    assert (made.scope, made.reuse, made.allow_no_cache) == ("key", Reuse(no_cache=True), False)
    assert (changed.scope, changed.reuse) == ("key", Reuse(max_age_seconds=90))
    assert changed.allow_no_cache is True
    assert (plain.scope, plain.reuse, plain.allow_no_cache) == (None, Reuse(), True)
    assert removed.public().keys().isdisjoint({"scope", "reuse", "allow_no_cache"})


# ── records of a newer gateway ──────────────────────────────────────────────────────────────


async def add_fields(store: Store, key_id: str) -> None:
    """Changes a record as a newer gateway would."""
    data = await execute(store, Get(KEYS, key_id))
    assert data is not None
    record = json.loads(data)
    record["webhook"] = "https://example.com"
    record["secrets"][0]["label"] = "first"
    record["limits"]["videos_per_day"] = "3"
    newer = json.dumps(record).encode()
    await execute(store, CompareAndSet((Write(KEYS, key_id, newer, expected=data),)))


async def test_unknown_fields_of_a_record_are_kept_and_not_shown(
    open_store: OpenStore, clock: Clock
) -> None:
    async with open_store() as store:
        keys = Keys(store, clock=clock)
        spec = parse_spec({"name": "a", "limits": {"usd_per_day": 1.5}})
        record, secret = await keys.create(spec, actor=ADMIN)
        await add_fields(store, record.id)

        key = await keys.authenticate(Credential.of(secret))
        changed = await keys.change(
            record.id, {"team": "art", "limits": {"images_per_day": 4}}, actor=ADMIN
        )
        stored = json.loads(await execute(store, Get(KEYS, record.id)) or b"")

    assert key.principal.subjects[0].rules == {"usd_per_day": LimitRule(1_500_000)}
    assert stored["webhook"] == "https://example.com"
    assert stored["secrets"][0]["label"] == "first"
    assert changed.limits == {
        "usd_per_day": Decimal("1.5"),
        "images_per_day": Decimal(4),
        "videos_per_day": Decimal(3),
    }
    assert "webhook" not in changed.public()
    assert "secrets" not in changed.public()


def test_a_record_with_only_the_oldest_fields_can_be_read() -> None:
    record = KeyRecord.decode(
        b'{"id": "key_1", "name": "a", "prefix": "gk-abc", "secrets": [], "created_at": 1}'
    )
    assert record.limit_rules() == {}
    assert record.is_active(now=2.0)


def test_limits_of_a_newer_gateway_are_removed_with_all_others_and_cannot_be_set() -> None:
    record = KeyRecord(
        id="key_1",
        name="a",
        prefix="gk-abc",
        secrets=(),
        created_at=1,
        limits={"videos_per_day": Decimal(3), "images_per_day": Decimal(4)},
    )
    assert record.merge({"limits": None}).limits == {}
    with pytest.raises(InvalidRequest, match="Unknown limit 'videos_per_day'"):
        record.merge({"limits": {"videos_per_day": 5}})


async def test_the_least_recently_used_key_is_dropped_from_memory(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The busiest key keeps its hour of trust, however many others come."""
    monkeypatch.setattr("gateway.access.keys.MAX_KNOWN", 3)
    _, busy = await keys.create(parse_spec({"name": "busy"}), actor=ADMIN)
    key = await keys.authenticate(Credential.of(busy))
    keys.mark_confirmed(key)
    others = [(await keys.create(parse_spec({"name": f"k{n}"}), actor=ADMIN))[1] for n in range(6)]
    for secret in others:
        await keys.authenticate(Credential.of(secret))
        await keys.authenticate(Credential.of(busy))

    assert keys.find_known(Credential.of(busy)) is not None
    assert keys.is_trusted_without_store(key)
    known = [secret for secret in others if keys.find_known(Credential.of(secret)) is not None]
    assert known == others[-2:]


async def test_a_revoked_key_is_listed_for_ninety_days(
    keys: Keys, other_worker: Keys, clock: Clock
) -> None:
    revoked, secret = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    await keys.authenticate(Credential.of(secret))
    await keys.revoke(revoked.id, actor=ADMIN)
    kept, _ = await keys.create(parse_spec({"name": "a"}), actor=ADMIN)
    clock.now += 90 * 86_400 - 1
    assert await other_worker.forget_revoked() == 0
    assert {record.id for record in await keys.list_keys()} == {revoked.id, kept.id}
    clock.now += 2
    assert await other_worker.forget_revoked() == 1
    assert await keys.forget_revoked() == 0
    assert [record.id for record in await keys.list_keys()] == [kept.id]
    with pytest.raises(IncorrectKey):
        await other_worker.authenticate(Credential.of(secret))
    with pytest.raises(GatewayError) as refused:
        await keys.change(revoked.id, {"name": "b"}, actor=ADMIN)
    assert refused.value.code == "key_not_found"


async def test_an_expired_key_is_never_forgotten_because_it_can_be_extended(
    keys: Keys, clock: Clock
) -> None:
    record, secret = await keys.create(
        parse_spec({"name": "a", "expires_at": int(clock.now) + 10}), actor=ADMIN
    )
    clock.now += 365 * 86_400
    await keys.forget_revoked()
    await keys.change(record.id, {"expires_at": None}, actor=ADMIN)
    assert (await keys.authenticate(Credential.of(secret))).principal.key_name == "a"


async def test_the_oldest_keys_that_are_not_revoked_are_learnt(
    keys: Keys, other_worker: Keys, clock: Clock
) -> None:
    secrets = {}
    for name in ("a", "b", "revoked", "c"):
        record, secrets[name] = await keys.create(parse_spec({"name": name}), actor=ADMIN)
        clock.now += 1
        if name == "revoked":
            await keys.revoke(record.id, actor=ADMIN)

    assert [key.name for key in await other_worker.learn(2)] == ["a", "b"]
    known = [
        name for name, secret in secrets.items() if other_worker.find_known(Credential.of(secret))
    ]
    assert known == ["a", "b", "c"]


@pytest.mark.timed
@usually_on("redis", "open_store")
async def test_ten_thousand_keys_never_hold_the_event_loop(open_store: OpenStore) -> None:
    async with open_store() as store:
        keys = Keys(store)
        records = [_record(n) for n in range(10_000)]
        for first in range(0, len(records), 500):
            await store.execute(
                [CompareAndSet(_writes(record)) for record in records[first : first + 500]]
            )
        assert len(await keys.map_keys(lambda record: record.id)) == 10_000
        for work in (lambda: keys.map_keys(lambda r: r.id), lambda: keys.learn(500)):
            assert min([await longest_pause_seconds(work()) for _ in range(3)]) < 0.010


@pytest.mark.timed
@usually_on("sqlite", "open_store")
async def test_thousands_of_teams_never_hold_the_event_loop(open_store: OpenStore) -> None:
    async with open_store() as store:
        subjects = Subjects(store)
        keys = Keys(store, subjects=subjects)
        teams = Teams(store, subjects, keys)
        for page in (range(first, first + 500) for first in range(0, 2000, 500)):
            writes = [write for n in page for write in _writes_of_team(n)]
            await store.execute([CompareAndSet(tuple(writes))])
        for work in (
            lambda: list_watched(keys, subjects, at=2000.0),
            lambda: teams.map_teams(lambda team: team.public()),
        ):
            assert min([await longest_pause_seconds(work()) for _ in range(3)]) < 0.005
        assert len(await list_watched(keys, subjects, at=2000.0)) == 4001
        assert len(await teams.list_teams()) == 2000


@pytest.mark.timed
@usually_on("sqlite", "open_store")
async def test_a_thousand_declared_keys_never_hold_the_event_loop(open_store: OpenStore) -> None:
    records = [_record(n).model_copy(update={"declared_in": "access.yaml"}) for n in range(1000)]
    by_name, by_id = ({r.name: r for r in records}, {r.id: r for r in records})

    def declared() -> AccessFile:
        return AccessFile(keys=by_name, ids=by_id)  # another one each time

    async with open_store() as store:
        subjects = Subjects(store, declared=declared)
        keys = Keys(store, subjects=subjects)
        recording = DeclaredKeys(store, declared, worker="w").record()
        assert await longest_pause_seconds(recording) < 0.010
        for work in (
            lambda: list_watched(keys, subjects, at=2000.0),
            lambda: keys.learn(500),
        ):
            assert min([await longest_pause_seconds(work()) for _ in range(3)]) < 0.005


def _writes_of_team(n: int) -> tuple[Write, ...]:
    team = SubjectRecord(name=f"t{n}", created_at=n, usd_per_day=5_000_000)
    record = _record(n).model_copy(update={"team": team.name})
    return Write(TEAMS, f"t{n}", team.encode(), expected=None), *_writes(record)


def _record(n: int) -> KeyRecord:
    secret = SecretHash(sha256=hash_secret(f"gk-{n}"))
    return KeyRecord(id=f"key_{n}", name=f"k{n}", prefix="gk-", secrets=(secret,), created_at=n)


def _writes(record: KeyRecord) -> tuple[Write, ...]:
    return (
        Write(KEYS, record.id, record.encode(), expected=None),
        Write(SECRETS, record.secrets[0].sha256, record.id.encode(), expected=None),
    )
