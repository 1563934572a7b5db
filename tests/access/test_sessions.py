"""Sessions of the dashboard and one-time links, on both stores and by several workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import orjson
import pytest
from pydantic import SecretStr

from gateway.access import sessions, sign_in_links
from gateway.access.audit import Actor, Audit
from gateway.access.key_spaces import Credential, hash_secret
from gateway.access.sessions import (
    ENDED,
    MAX_REMEMBERED,
    REREAD_SECONDS,
    SESSION_SECONDS,
    Session,
    Sessions,
    sign_session,
    verify_session,
)
from gateway.access.sign_in_links import LINKS, create_sign_in_link, use_sign_in_link
from gateway.errors import GatewayError
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, GetValue, Write
from gateway.store.protocol import Store
from tests.access.conftest import Clock
from tests.conftest import OpenStore
from tests.waiting import eventually

SECRET = b"a-signing-secret"
SESSION = Session("id", "key", "binding", expires_at=1000, key_id="key_1")
ACTOR = Actor("cli", "a test")
TOKEN = SecretStr("an-admin-token-of-tests")


@dataclass(frozen=True)
class Workers:
    """Two workers on one store."""

    store: Store
    here: Sessions
    there: Sessions


@pytest.fixture
async def workers(open_store: OpenStore, clock: Clock) -> AsyncIterator[Workers]:
    async with open_store() as store, open_store() as other:
        yield Workers(
            store,
            Sessions(store, admin_token=TOKEN, clock=clock),
            Sessions(other, admin_token=TOKEN, clock=clock),
        )


def test_a_token_is_read_until_its_end_and_with_its_secret_only() -> None:
    token = sign_session(SECRET, SESSION)
    assert verify_session(SECRET, token, now=999.9) == SESSION
    assert verify_session(SECRET, token, now=1000) is None
    assert verify_session(b"another", token, now=0) is None
    assert verify_session(SECRET, "", now=0) is None
    assert len(token) < 300


def test_a_token_of_a_newer_gateway_is_read_if_it_has_these_fields() -> None:
    def signed(fields: object) -> str:
        # As `sign_session`, whose argument has these fields only.
        from gateway.access.sessions import _encode, _sign  # noqa: PLC0415

        data = _encode(orjson.dumps(fields))
        return f"{data}.{_encode(_sign(SECRET, data))}"

    newer = signed({**asdict(SESSION), "scope": "all"})
    assert verify_session(SECRET, newer, now=0) == SESSION
    for other in ({}, {"id": "x"}, [], "x", 7):
        assert verify_session(SECRET, signed(other), now=0) is None


async def test_a_session_ends_after_twelve_hours(workers: Workers, clock: Clock) -> None:
    session, token = await workers.here.start_admin()
    clock.now += SESSION_SECONDS - 1
    assert await workers.there.read(token) == session
    clock.now += 1
    await _assert_refused(workers.there, token)


async def test_a_sign_out_holds_on_every_worker(workers: Workers) -> None:
    (session, token), (_, other) = [await workers.here.start_admin() for _ in range(2)]
    await workers.there.read(token)
    await workers.here.end(session)
    for worker in (workers.here, workers.there):
        await _assert_refused(worker, token)
        await worker.read(other)
    # Those that a worker remembers are bounded.
    for number in range(MAX_REMEMBERED + 1):
        workers.here._remember_ended(f"session-{number}")
    await _assert_refused(workers.here, token)


async def test_a_script_that_signs_out_all_the_time_stores_a_bounded_number(
    workers: Workers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_ENDED", 3)
    alice, bob = Credential.of("gk-alice"), Credential.of("gk-bob")
    _, token_of_bob = await workers.here.start_key("key_b", bob)
    ended, tokens = [], []
    for _ in range(5):
        session, token = await workers.here.start_key("key_a", alice)
        await workers.here.end(session)
        ended.append(await execute(workers.store, GetValue(ENDED, session.id)))
        tokens.append(token)
    assert ended == [b"1"] * 3 + [None] * 2
    for token in tokens:
        await _assert_refused(workers.there, token)
    # The next session, of the same second, is not among those that ended altogether.
    clock.now += 0.001
    _, later = await workers.here.start_key("key_a", alice)
    await workers.there.read(later)
    await workers.there.read(token_of_bob)


async def test_another_admin_token_ends_admins_sessions(workers: Workers, clock: Clock) -> None:
    _, token = await workers.here.start_admin()
    other_token = SecretStr("another-admin-token-of-tests")
    changed = Sessions(workers.store, admin_token=other_token, clock=clock)
    await _assert_refused(changed, token)
    await workers.there.read(token)


async def test_a_session_of_a_key_is_bound_to_its_secret(workers: Workers) -> None:
    credential = Credential.of("gk-a-secret")
    session, token = await workers.here.start_key("key_1", credential)
    read = await workers.there.read(token)
    assert (read, read.key_id) == (session, "key_1")
    assert workers.there.is_bound(read, credential)
    assert not workers.there.is_bound(read, Credential.of("gk-another-secret"))
    # The token is no way to test guesses of a weak secret.
    assert credential.secret_hash not in repr(session)


async def test_workers_find_a_secret_that_was_made_anew(workers: Workers, clock: Clock) -> None:
    """As after the store was emptied."""
    _, former = await workers.here.start_admin()
    await workers.there.read(former)
    old = await execute(workers.store, Get("meta", "session_secret"))
    write = Write("meta", "session_secret", None, expected=old)
    assert await execute(workers.store, CompareAndSet((write,))) is None
    await workers.here.refresh()
    _, token = await workers.here.start_admin()
    clock.now += REREAD_SECONDS * 2
    await workers.there.read(token)
    await _assert_refused(workers.there, former)


async def test_a_link_works_once_and_not_when_it_has_expired(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store() as here, open_store() as there:
        link = await create_sign_in_link(here, "https://images.example.com", actor=ACTOR)
        start, _, secret = link.partition("#link=")
        assert start == "https://images.example.com/dashboard"
        assert len(secret) >= 43
        # The store does not have the secret itself.
        assert await execute(here, GetValue(LINKS, secret)) is None
        assert await use_sign_in_link(there, secret)
        for store in (here, there):
            assert not await use_sign_in_link(store, secret)
            assert not await use_sign_in_link(store, "")
            assert not await use_sign_in_link(store, hash_secret(secret))

        monkeypatch.setattr(sign_in_links, "LINK_SECONDS", 0.05)
        late = (await create_sign_in_link(here, "x", actor=ACTOR)).partition("#link=")[2]
        name = hash_secret(late)

        async def has_expired() -> bool:
            return await execute(here, GetValue(LINKS, name)) is None

        await eventually(has_expired)
        assert not await use_sign_in_link(here, late)


async def test_every_link_is_in_the_audit(open_store: OpenStore) -> None:
    async with open_store() as store:
        link = await create_sign_in_link(store, "x", actor=ACTOR)
        (entry,) = await Audit(store).read()
    assert (entry.event.actor, entry.event.action) == (ACTOR, "sign_in_link.create")
    assert link.partition("#link=")[2] not in str(entry.public())


async def _assert_refused(worker: Sessions, token: str) -> None:
    with pytest.raises(GatewayError) as refused:
        await worker.read(token)
    assert refused.value.code == "session_required"
