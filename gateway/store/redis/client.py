"""One Redis server: connecting, the handshake, scripts, and errors.

This is the one place where redis-py's errors become `StoreUnavailable` and `StoreFull`. What an
error means is in `faults`. Pipelining is `connection`, notifications are `pubsub`, and the commands
of the store are `commands`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Final

import structlog
from redis import exceptions as redis_errors

from gateway.errors import StoreFull, StoreUnavailable, detach
from gateway.store.handshake import (
    SCHEMA_VERSION,
    SchemaMismatch,
    StoreMisconfigured,
    StoreMissing,
    StoreReadOnly,
)
from gateway.store.redis.commands.encoding import RedisCommand
from gateway.store.redis.connection import PLAIN_REPLIES, PipelinedConnection, RawCommand
from gateway.store.redis.faults import (
    CONNECTION_ERRORS,
    Fault,
    NotMaster,
    code_of,
    find_fault,
    is_reply,
    node_of,
    refuses_in_script,
    retires,
)
from gateway.store.redis.keys import Keys
from gateway.store.redis.outage import Outage
from gateway.store.redis.replication import Replication
from gateway.store.redis.rights import find_missing_rights
from gateway.store.redis.scripts import SCRIPTS, Script
from gateway.store.redis.topology.addresses import Address, Addresses
from gateway.store.redis.urls import TIMEOUT_SECONDS

log = structlog.get_logger(__name__)

PROBE_SECONDS: Final = 1.0
"""How long a server counts as one that takes writes. After that, a probe precedes the next read."""

RETRY_SECONDS: Final = 0.25
"""The pause before another attempt to connect to a server that answers but cannot be used."""

ELECTION_SECONDS: Final = 0.1
"""The pause before another attempt to connect, while the known server refuses writes and another
one is being elected."""

ALWAYS_WRITE: Final = frozenset({SCRIPTS["append"], SCRIPTS["heartbeat"]})
"""Scripts that every worker runs often, and that a server without writes would refuse."""

NO_EVICTION: Final = b"noeviction"

NO_SUCCESSOR: Final = (
    "has no store, though the master before had one: sentinels name another Redis, or one that was"
    " restarted without its data. Restart the gateway if it should begin an empty store there."
)

_CANNOT_CONNECT: Final = (*CONNECTION_ERRORS, redis_errors.ResponseError)

_EXECUTE_ERRORS: Final = (*_CANNOT_CONNECT, SchemaMismatch)

_COMMAND_OF: Final = attrgetter("command")
_SCRIPT_OF: Final = attrgetter("script")
"""Without a step of the interpreter for each command of a batch."""

_POLICY: Final = re.compile(rb"^maxmemory_policy:([\w-]+)", re.MULTILINE)


class NotReached(redis_errors.RedisError):
    """The reply to a command that was not sent, because one before it failed."""


@dataclass(frozen=True, slots=True)
class NodeReplies:
    """The replies of all primaries of a cluster, that of the books' node first."""

    replies: Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Failure:
    """An attempt to connect that failed, for all requests that waited for it."""

    error: Exception


class RedisClient:
    """Executes commands on one server, connecting when necessary.

    After every connect it checks or sets the server's schema version and loads `scripts`, because
    the server may have been replaced meanwhile. Nothing else is sent to a server of another schema
    version, or to one that takes no writes. A client that `holds_books` logs a server that may
    evict them. `on_connected` is called after every connect, and `location` is for messages.
    """

    _retires: Callable[[BaseException], bool] = staticmethod(retires)

    _subject = "The Redis"

    def __init__(
        self,
        addresses: Addresses,
        *,
        keys: Keys,
        scripts: Sequence[Script] = (),
        may_create: bool = True,
        holds_books: bool = False,
    ) -> None:
        self.location = addresses.location
        self.addresses = addresses
        addresses.on_replaced.append(self.drop)
        self._replication: Replication | None = None
        if addresses.is_elected:
            self._replication = Replication(
                addresses, find_key=lambda: keys.fence, find_fault=self._find_fault
            )
        self._keys = keys
        self._scripts = scripts
        self._may_create = may_create
        self._holds_books = holds_books
        self.on_connected: Callable[[], None] = lambda: None
        # A write that changes nothing: a replica refuses it, and a full server does not.
        self._probe: RawCommand = (b"DEL", keys.probe.encode())
        self._next_probe_at = 0.0
        self._pipeline: PipelinedConnection | None = None
        self._attempt: asyncio.Task[PipelinedConnection | _Failure] | None = None
        self._next_attempt_at = 0.0
        self._shaking_hands = asyncio.Lock()
        self._handshakes = 0
        self._connections = 0
        self._drops = 0
        self._is_closed = False
        self._outage = Outage(
            location=self.location, holds_books=holds_books, is_available=self._is_available
        )
        self._logged_policy = NO_EVICTION

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects at the first use; on exit, pending requests fail with `StoreUnavailable`."""
        async with self.addresses.open():
            try:
                yield
            finally:
                await self.close()

    async def close(self) -> None:
        """Pending requests fail with `StoreUnavailable`."""
        self._is_closed = True
        self._outage.stop()
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self._replication is not None:
            await self._replication.close()
        if self._pipeline is not None:
            self._pipeline.abort(redis_errors.ConnectionError("the store is closed"))

    def drop(self) -> None:
        """Closes the connection although it may answer: another server takes the commands now.

        Pending requests fail with `StoreUnavailable`, and the next request connects again.
        """
        self._drops += 1
        if self._pipeline is not None:
            self._pipeline.abort(redis_errors.ConnectionError("another server has taken over"))

    async def execute(self, commands: Sequence[RawCommand], mark: Any = None) -> list[Any]:
        """The replies in order; a command that Redis refuses has a `RedisError` as its reply.

        `mark` is that of `confirm`. In a cluster it gets the nodes that have executed the commands.

        Raises `StoreUnavailable` if the server is unavailable, too slow, read-only, or of another
        schema version.
        """
        return await self._execute(commands, _find_unexecuted)

    def run(self, commands: Sequence[RedisCommand], mark: Any = None) -> Awaitable[list[Any]]:
        """As `execute`; loads the scripts again if a restarted server has lost them."""
        has_writes = not ALWAYS_WRITE.isdisjoint(map(_SCRIPT_OF, commands))
        return self._execute(
            list(map(_COMMAND_OF, commands)),
            partial(_find_repeats, commands),
            writes=[i for i, each in enumerate(commands) if each.script in ALWAYS_WRITE]
            if has_writes
            else (),
        )

    @property
    def is_replicated(self) -> bool:
        """Whether a replica may be promoted, so that `confirm` waits."""
        return self._replication is not None

    def mark(self) -> int:
        """The number of the connection that the next commands go over, for `confirm`."""
        is_open = self._pipeline is not None and self._pipeline.is_open
        return self._connections + (not is_open)

    async def confirm(self, mark: Any, keys: Sequence[str]) -> None:
        """Waits until replicas have what was executed since `mark`, if one may be promoted.

        Raises `StoreUnavailable` if another server has taken over, which may lack the writes. The
        caller then repeats them. If no replica confirms, logs that and returns (`replication`).
        """
        if self._replication is None:
            return
        used = self._pipeline if self._connections == mark else None
        if used is None or not await self._replication.confirm(
            used, lambda: self._pipeline is used
        ):
            raise self._translate(redis_errors.ConnectionError("another server has taken over"))

    async def execute_everywhere(self, command: RawCommand) -> list[Any]:
        """The reply of the server, as the only one. A cluster has one of each primary."""
        return await self.execute([command])

    async def scan(self, command: Sequence[Any], *, cursor_at: int) -> Any:
        """The reply to a command that scans the whole server from a cursor, which is an argument.

        Raises as `execute`.
        """
        (reply,) = await self.execute([tuple(command)])
        return reply

    async def _execute(
        self,
        commands: Sequence[RawCommand],
        find_repeats: Callable[[Sequence[Any]], Sequence[int]],
        *,
        writes: Sequence[int] = (),
    ) -> list[Any]:
        """`writes` are the indexes of those that a server without writes would refuse."""
        if not commands:
            return []
        deadline, handshakes, pipeline = _deadline(), self._handshakes, self._pipeline
        try:
            if pipeline is None or not pipeline.is_open:
                pipeline = await self._ready_pipeline(deadline)
            if deadline < self._next_probe_at or len(writes) == len(commands):
                replies = await pipeline.send(commands, deadline=deadline)
                repeats = find_repeats(replies)
            else:
                # A master that was demoted meanwhile still answers reads, with what it had then.
                # So the probe comes first.
                self._next_probe_at = deadline + PROBE_SECONDS
                probing = [self._probe, *commands]
                probed, *replies = await pipeline.execute(probing, deadline=deadline)
                is_retired = isinstance(probed, redis_errors.RedisError) and retires(probed)
                repeats = range(len(replies)) if is_retired else find_repeats(replies)
            if repeats:
                # A server that takes no writes has executed none of these, and a new connection
                # may lead to one that does.
                pipeline = await self._ready_pipeline(deadline, handshakes=handshakes + 1)
                repeated = await pipeline.execute([commands[i] for i in repeats], deadline=deadline)
                for i, reply in zip(repeats, repeated, strict=True):
                    replies[i] = reply
        except _EXECUTE_ERRORS as error:
            raise self._translate(error) from error
        for i in writes:
            # As good as the probe.
            if not isinstance(replies[i], redis_errors.RedisError):
                self._next_probe_at = max(self._next_probe_at, deadline + PROBE_SECONDS)
        return replies

    async def check(
        self, names: Sequence[str], *, subscribe: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Checks the server, and that its user may use the commands `names` and `subscribe`.

        Raises `SchemaMismatch`, `StoreMissing`, `StoreMisconfigured`, `StoreReadOnly`, `StoreFull`,
        or `StoreUnavailable` with its reason.
        """
        deadline = _deadline()
        try:
            pipeline = await self._ready_pipeline(deadline)
            fault = await self._find_missing_rights(pipeline, names, deadline=deadline)
            if fault is None and subscribe is not None:
                await subscribe()
        except _CANNOT_CONNECT as error:
            fault = await self._diagnose(error, names)
            if fault is None:
                raise self.translate(error, "the handshake") from error
            raise self._refusal(fault, code_of(error)) from error
        except StoreMissing:
            if (fault := await self._find_missing_rights_apart(names)) is None:
                raise
        if fault is not None:
            raise self._refusal(fault)

    async def find_wait_refusal(self) -> str | None:
        """Why writes cannot wait for replicas; None if they can, or if none may be promoted.

        Raises as `execute`.
        """
        if self._replication is None:
            return None
        deadline = _deadline()
        try:
            pipeline = await self._ready_pipeline(deadline)
            fault = await self._find_missing_rights(pipeline, ("WAIT",), deadline=deadline)
        except _EXECUTE_ERRORS as error:
            raise self._translate(error) from error
        return f"{self._subject} {fault.text}" if fault is not None else None

    async def _find_missing_rights(
        self, pipeline: PipelinedConnection, names: Sequence[str], *, deadline: float
    ) -> Fault | None:
        missing = await find_missing_rights(pipeline, names, keys=self._keys, deadline=deadline)
        return (
            missing.as_fault(self.addresses.user, self._keys.prefix)
            if missing is not None
            else None
        )

    async def _diagnose(self, error: Exception, names: Sequence[str]) -> Fault | None:
        """As `find_fault`; also looks at the server, if the error does not say enough."""
        fault = self._find_fault(error)
        if fault is None:
            return None
        if not is_reply(error):
            return fault if fault.lasts else await self.addresses.diagnose() or fault
        if code_of(error) != "NOPERM" and not refuses_in_script(error):
            return fault
        # One error names one right at most, and an operator wants all of them.
        return await self._find_missing_rights_apart(names) or fault

    async def _find_missing_rights_apart(self, names: Sequence[str]) -> Fault | None:
        """Over a connection of its own, because there was no handshake."""
        try:
            address = (await self.addresses.resolve())[0]
            pipeline = PipelinedConnection(await self.addresses.connect(address))
        except _CANNOT_CONNECT:
            return None
        try:
            return await self._find_missing_rights(pipeline, names, deadline=_deadline())
        finally:
            pipeline.abort(redis_errors.ConnectionError("the check has ended"))

    def may_be_on(self, key: bytes, node: str) -> bool:
        """Whether a cluster's node may have the key: always True for a single server."""
        return True

    def translate(
        self, reply: Exception, command: str, *, outage: Outage | None = None
    ) -> Exception:
        """A reply as `StoreFull`, `StoreUnavailable`, or `RuntimeError` for a bug of ours.

        `outage` is that of a whole cluster; None: of this server.
        """
        if code_of(reply) == "OOM":
            return StoreFull(node=node_of(reply))
        if (fault := self._find_fault(reply)) is None:
            return RuntimeError(f"Redis refused {command}: {reply}")
        reason = f"{self._subject} {fault.text}"
        (outage or self._outage).occurs(reason)
        return StoreUnavailable(reason=reason)

    async def _is_available(self) -> bool:
        """Whether the server takes writes, for `Outage`."""
        deadline = _deadline()
        try:
            pipeline = await self._ready_pipeline(deadline)
            (reply,) = await pipeline.execute([self._probe], deadline=deadline)
        except (*_EXECUTE_ERRORS, StoreMissing):
            return False
        return not isinstance(reply, redis_errors.RedisError)

    # ── connecting ──────────────────────────────────────────────────────────────────────────

    async def _ready_pipeline(self, deadline: float, *, handshakes: int = 1) -> PipelinedConnection:
        """The open connection; `handshakes` is the least number of them that this client has done.

        Requests that find the scripts lost at the same time share one further handshake.
        """
        pipeline = self._pipeline
        is_open = pipeline is not None and pipeline.is_open
        if pipeline is not None and is_open and self._handshakes >= handshakes:
            return pipeline
        async with asyncio.timeout_at(deadline):
            if pipeline is None or not is_open:
                return await self._share_attempt()
            async with self._shaking_hands:
                if self._handshakes < handshakes:
                    await self._shake_hands(pipeline, deadline)
            return pipeline

    async def _share_attempt(self) -> PipelinedConnection:
        """Requests that need a connection at the same time share the attempt, and its failure."""
        # A task that is still running must not reconnect.
        if not self._is_closed and (self._attempt is None or self._attempt.done()):
            self._attempt = asyncio.create_task(self._attempt_to_connect(), name="redis-connect")
        attempt = self._attempt
        if attempt is not None:
            # The attempt goes on if this request is cancelled or times out.
            await asyncio.wait([attempt])
        if attempt is None or self._is_closed:
            raise redis_errors.ConnectionError("the store is closed")
        outcome = attempt.result()
        if isinstance(outcome, _Failure):
            raise _copy(outcome.error)
        return outcome

    async def _attempt_to_connect(self) -> PipelinedConnection | _Failure:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_attempt_at - loop.time())
        try:
            self._pipeline = await self._connect(_deadline())
        except (*_EXECUTE_ERRORS, StoreMissing) as error:
            if is_reply(error):
                self._next_attempt_at = loop.time() + RETRY_SECONDS
            return _Failure(detach(error))
        self._connections += 1
        self.on_connected()
        return self._pipeline

    async def _connect(self, deadline: float) -> PipelinedConnection:
        """Connects to a server that takes writes, again and again while one is being elected."""
        loop = asyncio.get_running_loop()
        while True:
            drops = self._drops
            try:
                pipeline = await self._connect_once(deadline)
            except _CANNOT_CONNECT as error:
                is_early = loop.time() + ELECTION_SECONDS < deadline
                # Another server would refuse the password too, so NOAUTH is raised at once.
                may_change = retires(error) and code_of(error) != "NOAUTH"
                if not (self.addresses.is_elected and may_change and is_early):
                    raise
                await asyncio.sleep(ELECTION_SECONDS)
                continue
            if self._drops == drops:
                return pipeline
            pipeline.abort(redis_errors.ConnectionError("another server has taken over"))

    async def _connect_once(self, deadline: float) -> PipelinedConnection:
        """Connects to the first of the addresses whose server takes writes."""
        addresses = await self.addresses.resolve()
        for i, address in enumerate(addresses):
            now = asyncio.get_running_loop().time()
            until = now + (deadline - now) / (len(addresses) - i)
            try:
                pipeline = await self._connect_to(address, until)
            except _CANNOT_CONNECT as error:
                may_be_another = retires(error) or not is_reply(error)
                if i + 1 == len(addresses) or not may_be_another:
                    raise
            else:
                self.addresses.current = address
                return pipeline
        raise redis_errors.ConnectionError("the host has no address")

    async def _connect_to(self, address: Address | None, deadline: float) -> PipelinedConnection:
        async with asyncio.timeout_at(deadline):
            connection = await self.addresses.connect(address)
            pipeline = PipelinedConnection(connection, retires=self._retires)
        try:
            await self._shake_hands(pipeline, deadline)
        except BaseException:
            pipeline.abort(redis_errors.ConnectionError("the handshake failed"))
            raise
        return pipeline

    async def _shake_hands(self, pipeline: PipelinedConnection, deadline: float) -> None:
        source, version = SCRIPTS["handshake"].source, str(SCHEMA_VERSION).encode()
        schema_key = self._keys.schema.encode()
        is_successor = self._holds_books and self.addresses.is_elected and self._handshakes > 0
        may_create = self._may_create and not is_successor
        handshake = (b"EVAL", source, b"1", schema_key, version, b"%d" % may_create)
        found, probed = await pipeline.execute([handshake, self._probe], deadline=deadline)
        # With MISCONF, what is stored can still be read.
        if isinstance(probed, redis_errors.RedisError) and code_of(probed) != "MISCONF":
            raise probed
        if isinstance(found, redis_errors.RedisError):
            raise found
        if found is None and is_successor:
            raise NotMaster(Fault(NO_SUCCESSOR))
        if found is None:
            raise StoreMissing(self.location)
        if found != version:
            raise SchemaMismatch(self.location, str(found, errors="replace"))
        await self._load_scripts(pipeline, deadline)
        self._next_probe_at = deadline + PROBE_SECONDS
        if not isinstance(probed, redis_errors.RedisError):
            self._outage.ends()

    async def _load_scripts(self, pipeline: PipelinedConnection, deadline: float) -> None:
        loads = [(b"SCRIPT", b"LOAD", script.source) for script in self._scripts]
        inspect = [(b"INFO", b"memory")] if self._holds_books else []
        replies = await pipeline.execute([*loads, *inspect], deadline=deadline)
        for reply in replies[: len(loads)]:
            if isinstance(reply, redis_errors.RedisError):
                raise reply
        if self._holds_books:
            self._warn_of_eviction(replies[-1])
        self._handshakes += 1

    def _warn_of_eviction(self, info: Any) -> None:
        """Logs a policy other than `noeviction`, once after each change."""
        found = _POLICY.search(info) if isinstance(info, bytes) else None
        policy = found[1] if found is not None else NO_EVICTION
        # At the first connect the start has reported it, unless the server was not there yet.
        is_news = self._handshakes > 0 or self._outage.lasts
        if is_news and policy not in (NO_EVICTION, self._logged_policy):
            log.warning("store_may_evict", store=self.location, policy=policy.decode())
        self._logged_policy = policy

    # ── errors ──────────────────────────────────────────────────────────────────────────────

    def _find_fault(self, error: BaseException) -> Fault | None:
        return find_fault(
            error,
            user=self.addresses.user,
            prefix=self._keys.prefix,
            is_tls=self.addresses.is_tls,
            # Not `addresses.is_elected`: a node has a fixed address, but may get a successor.
            is_elected=self._replication is not None,
        )

    def _refusal(self, fault: Fault, code: str = "") -> Exception:
        text = f"The Redis at {self.location} {fault.text}"
        if code == "READONLY":
            return StoreReadOnly(text)
        return StoreMisconfigured(text) if fault.lasts else StoreUnavailable(reason=text)

    def _translate(self, error: Exception) -> Exception:
        if isinstance(error, SchemaMismatch):
            self._outage.occurs(str(error))
            return schema_mismatch_refusal(error)
        return self.translate(error, "the connection")


def schema_mismatch_refusal(error: SchemaMismatch) -> StoreUnavailable:
    """The error for clients. Its message leaves out the address of the store."""
    text = (
        f"The gateway's store has schema version {error.found};"
        f" this gateway reads version {error.supported}."
    )
    return StoreUnavailable(text, reason=text)


def _copy(error: Exception) -> Exception:
    """An equal error: the traceback of one that many requests raise would grow."""
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    return copied


def _deadline() -> float:
    return asyncio.get_running_loop().time() + TIMEOUT_SECONDS


def _find_repeats(commands: Sequence[RedisCommand], replies: Sequence[Any]) -> Sequence[int]:
    """The indexes of commands to send again, because none of them was executed as it should be.

    If the server has lost the scripts, these are the scripts that failed for it, and the plain
    reads after the first of them: they were executed before the commands that precede them.
    """
    repeats: list[int] = []
    if not has_error(replies):
        return repeats
    for i, (command, reply) in enumerate(zip(commands, replies, strict=True)):
        if isinstance(reply, redis_errors.RedisError) and retires(reply):
            return [*repeats, *range(i, len(replies))]
        is_lost = isinstance(reply, redis_errors.NoScriptError)
        if is_lost or (repeats and command.script is None):
            repeats.append(i)
    return repeats


def has_error(replies: Sequence[Any]) -> bool:
    """Whether a command was refused."""
    if PLAIN_REPLIES.issuperset(map(type, replies)):  # faster, and so are almost all batches
        return False
    return any(isinstance(reply, redis_errors.RedisError) for reply in replies)


def _find_unexecuted(replies: Sequence[Any]) -> Sequence[int]:
    """The first command that a server without writes refused, and all that follow it."""
    for i, reply in enumerate(replies):
        if isinstance(reply, redis_errors.RedisError) and retires(reply):
            return range(i, len(replies))
    return ()
