"""Each verb as one Redis command, and each reply as the verb's answer. Pure: nothing is sent here.

Almost every verb is one Lua script, `lua/<verb>.lua`, with the parts of `lua/shared/` that it
needs put before it; the scripts are the atomic steps and the only ones that know the clock.
Some verbs that only read are plain commands. Numbers travel as integers (times as microseconds),
so that nothing is rounded on the way. How commands are sent is `redis`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, singledispatch
from importlib import resources
from typing import Any, Final, cast

import hiredis

from gateway.store import verbs
from gateway.store.verbs import MeterState, Slot, Take, Verb

Argument = bytes | str | int
"""What a command is made of; text goes out as UTF-8."""

SECOND: Final = 1_000_000
"""Microseconds: the unit of all times and durations in scripts and values."""

MOST_READ: Final = 1024
"""Slots whose meaning is kept, because a picture that is asked for is asked for again."""

MOST_WRITTEN: Final = 1024
"""Commands that are asked again and again and are kept as they go out, of each such verb."""


# ── scripts ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the name under which the server remembers it."""

    source: str
    sha: str


def _read_script(name: str, *shared: str) -> Script:
    folder = resources.files("gateway.store") / "lua"
    parts = [folder / "shared" / f"{part}.lua" for part in ("clock", *shared)]
    source = "\n".join(part.read_text("utf-8") for part in [*parts, folder / f"{name}.lua"])
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_ENTRIES: Final = ("slots",)
_BOOKS: Final = ("books",)
_METERS: Final = ("books", "meters")
_JOURNALS: Final = ("books", "meters", "journals")
_SHELF: Final = ("shelf",)

SCRIPTS: Final[Mapping[str, Script]] = {
    name: _read_script(name, *shared)
    for name, shared in {
        "get_through": (),
        "put": (),
        "read_entry": (),
        "claim": _ENTRIES,
        "extend": _ENTRIES,
        "release": _ENTRIES,
        "keep": _ENTRIES,
        "clear": _ENTRIES,
        "scan_entries": (),
        "note": (),
        "drop_note": (),
        "enlist": (),
        "strike": (),
        "shelve": _SHELF,
        "shrink": _SHELF,
        "touch": _SHELF,
        "unshelve": _SHELF,
        "oldest": _SHELF,
        "read_shelf": _SHELF,
        "on_shelf": _SHELF,
        "sweep": _SHELF,
        "put_blob": (),
        "publish": (),
        "beat": _BOOKS,
        "dead_workers": _BOOKS,
        "retire": _BOOKS,
        "admit": _METERS,
        "reserve": _JOURNALS,
        "receive": _BOOKS,
        "settle": _JOURNALS,
        "open_journals": _BOOKS,
        "read_meters": _METERS,
        "append": _BOOKS,
        "read_ledger": _BOOKS,
        "inspect": (),
        "stamp": (),
    }.items()
}
"""All scripts by the name of their file, read once."""


# ── keys ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys under one prefix; their table is in `redis`."""

    prefix: str

    @property
    def layout(self) -> str:
        return f"{self.prefix}layout"

    @property
    def books(self) -> str:
        """What every key of the books begins with; no key itself, but it names their slot."""
        return f"{self.prefix}{{books}}:"

    @property
    def shelf(self) -> str:
        """The same for the shelf."""
        return f"{self.prefix}{{shelf}}:"

    def note(self, space: str, name: str) -> str:
        return f"{self.prefix}note:{space}:{name}"

    def list_of(self, space: str, name: str) -> str:
        return f"{self.prefix}list:{space}:{name}"

    def records(self, space: str) -> str:
        return f"{self.books}records:{space}"

    def entry(self, fingerprint: str) -> str:
        return f"{self.prefix}entry:{{{fingerprint}}}"

    def fingerprint(self, entry: str) -> str:
        """Whose entry a key is."""
        return entry.removeprefix(f"{self.prefix}entry:{{").removesuffix("}")

    def claims(self, fingerprint: str) -> str:
        return f"{self.prefix}claims:{{{fingerprint}}}"

    def events(self, flight: str) -> str:
        return f"{self.prefix}flight:{{{flight}}}"

    def event_ids(self, flight: str) -> str:
        return f"{self.prefix}flight-ids:{{{flight}}}"

    def wake(self, flight: str) -> str:
        """A channel, no key."""
        return f"{self.prefix}wake:{flight}"

    def bytes_of(self, kind: str, digest: str) -> str:
        """Where bytes lie: `blob` for a picture's, `passing` for what lives for minutes."""
        return f"{self.prefix}{kind}:{digest}"


def pattern_of(key: str) -> str:
    """Finds the keys of a kind: `key` is the name of one of them, with `*` for what differs."""
    return "*".join(_SPECIAL.sub(r"\\\g<0>", part) for part in key.split("*"))


_SPECIAL: Final = re.compile(r"[\[\]?^\\]")


# ── calls ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Call:
    """A command and how its reply is read."""

    command: tuple[Argument, ...] | bytes
    """Bytes are a command as it goes out."""
    read: Callable[[Any], Any]
    script: Script | None = None
    """None for a plain command; those only read, so they may be repeated at will."""


def _call(
    name: str, keys: Sequence[str], arguments: Iterable[Argument], *, read: Callable[[Any], Any]
) -> Call:
    script = SCRIPTS[name]
    command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
    return Call(command, read, script)


def _written(call: Call) -> Call:
    """The same, with its command as it goes out."""
    return replace(call, command=hiredis.pack_command(cast(Any, call.command)))


def _nothing(_: Any) -> None:
    """The answer of a verb that has none."""


def _as_is(reply: Any) -> Any:
    return reply


@singledispatch
def call_for(verb: Verb[Any], keys: Keys) -> Call:
    """The command that does `verb`. Raises TypeError for a verb that has none."""
    raise TypeError(f"the Redis store does not know the verb {type(verb).__name__}")


# ── records ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _get(verb: verbs.Get, keys: Keys) -> Call:
    space = keys.records(verb.space)
    if verb.through is None:
        return Call(("HGET", space, verb.name), _as_is)
    return _call("get_through", [keys.records(verb.through), space], [verb.name], read=_as_is)


@call_for.register
def _put(verb: verbs.Put, keys: Keys) -> Call:
    arguments: list[Argument] = []
    for change in verb.changes:
        arguments += [change.name, *_optional(change.expect), *_optional(change.value)]
    spaces = [keys.records(change.space) for change in verb.changes]
    return _call("put", spaces, arguments, read=_as_is)


def _optional(value: bytes | None) -> tuple[Argument, Argument]:
    return (0, b"") if value is None else (1, value)


@call_for.register
def _scan(verb: verbs.Scan, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Mapping[str, bytes]:
        return {name.decode(): value for name, value in _pairs(reply)}

    return Call(("HGETALL", keys.records(verb.space)), read)


# ── entries ─────────────────────────────────────────────────────────────────────────────────


def _entry_call(
    name: str, fingerprint: str, keys: Keys, arguments: Iterable[Argument], read: Callable[..., Any]
) -> Call:
    both = [keys.entry(fingerprint), keys.claims(fingerprint)]
    return _call(name, both, arguments, read=read)


def _read_slots(flat: Sequence[Any]) -> dict[int, Slot]:
    return {int(slot): _read_slot(value) for slot, value in _pairs(flat)}


@lru_cache(maxsize=MOST_READ)
def _read_slot(value: bytes) -> Slot:
    """Reads `<expires> <length of id> <id><data>`, as `shared/slots.lua` writes it."""
    expires, length, rest = value.split(b" ", 2)
    end = int(length)
    return Slot(rest[:end].decode(), int(expires) / SECOND, rest[end:])


@call_for.register
@lru_cache(maxsize=MOST_WRITTEN)
def _read_entry(verb: verbs.ReadEntry, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Entry:
        now, slots = reply
        return verbs.Entry(now / SECOND, _read_slots(slots))

    return _written(_call("read_entry", [keys.entry(verb.fingerprint)], (), read=read))


@call_for.register
def _claim(verb: verbs.Claim, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Claimed:
        now, held, mine, others = reply
        return verbs.Claimed(
            now=now / SECOND,
            held=_read_slots(held),
            mine=tuple(mine),
            others={slot: flight.decode() for slot, flight in _pairs(others)},
        )

    arguments: list[Argument] = [verb.flight, _micros(verb.lease_seconds), len(verb.slots)]
    arguments += [*verb.slots, *verb.ignoring]
    return _entry_call("claim", verb.fingerprint, keys, arguments, read)


@call_for.register
def _extend(verb: verbs.Extend, keys: Keys) -> Call:
    arguments = (verb.flight, _micros(verb.lease_seconds))
    return _entry_call("extend", verb.fingerprint, keys, arguments, bool)


@call_for.register
def _release(verb: verbs.Release, keys: Keys) -> Call:
    return _entry_call("release", verb.fingerprint, keys, (verb.flight,), _nothing)


@call_for.register
def _keep(verb: verbs.Keep, keys: Keys) -> Call:
    arguments: list[Argument] = [
        verb.flight,
        _micros(verb.lifetime_seconds),
        _micros(verb.linger_seconds),
        int(verb.displaces),
    ]
    for wanted, slot in sorted(verb.slots.items()):
        arguments += [wanted, slot.picture, slot.data]
    return _entry_call("keep", verb.fingerprint, keys, arguments, lambda reply: dict(_pairs(reply)))


@call_for.register
def _clear(verb: verbs.Clear, keys: Keys) -> Call:
    arguments = _flat(verb.pictures.items())
    return _entry_call("clear", verb.fingerprint, keys, arguments, _nothing)


@call_for.register
def _scan_entries(verb: verbs.ScanEntries, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.EntriesPage:
        cursor, found = reply
        entries = {
            keys.fingerprint(key.decode()): _read_slots(slots)
            for key, slots in _pairs(found)
            if slots  # else it ended between the two looks
        }
        return verbs.EntriesPage(entries, read_cursor(cursor))

    arguments = (verb.after or "0", pattern_of(keys.entry("*")), verb.limit)
    return _call("scan_entries", (), arguments, read=read)


def read_cursor(cursor: bytes) -> str | None:
    """Where `SCAN` goes on; None at the end."""
    return None if cursor == b"0" else cursor.decode()


# ── notes and lists ─────────────────────────────────────────────────────────────────────────


@call_for.register
def _note(verb: verbs.Note, keys: Keys) -> Call:
    ends = verb.lifetime_seconds
    lifetime: Argument = "" if ends is None else _micros(ends)
    arguments: list[Argument] = [verb.value, int(verb.is_new), lifetime]
    return _call("note", [keys.note(verb.space, verb.name)], arguments, read=bool)


@call_for.register
def _read_note(verb: verbs.ReadNote, keys: Keys) -> Call:
    return Call(("GET", keys.note(verb.space, verb.name)), _as_is)


@call_for.register
def _drop_note(verb: verbs.DropNote, keys: Keys) -> Call:
    return _call("drop_note", [keys.note(verb.space, verb.name)], (), read=_nothing)


@call_for.register
def _enlist(verb: verbs.Enlist, keys: Keys) -> Call:
    arguments: list[Argument] = [_micros(verb.lifetime_seconds), *verb.members]
    return _call("enlist", [keys.list_of(verb.space, verb.name)], arguments, read=_nothing)


@call_for.register
def _read_list(verb: verbs.ReadList, keys: Keys) -> Call:
    return Call(("SMEMBERS", keys.list_of(verb.space, verb.name)), _read_texts)


@call_for.register
def _strike(verb: verbs.Strike, keys: Keys) -> Call:
    return _call("strike", [keys.list_of(verb.space, verb.name)], verb.members, read=_nothing)


def _read_texts(reply: Sequence[bytes]) -> Sequence[str]:
    return [text.decode() for text in reply]


# ── the shelf ───────────────────────────────────────────────────────────────────────────────


@call_for.register
def _shelve(verb: verbs.Shelve, keys: Keys) -> Call:
    lifetime = _micros(verb.lifetime_seconds)
    arguments = (verb.digest, verb.size_bytes, lifetime, verb.most_bytes)
    return _call("shelve", [keys.shelf], arguments, read=_read_texts)


@call_for.register
def _shrink(verb: verbs.Shrink, keys: Keys) -> Call:
    return _call("shrink", [keys.shelf], [verb.most_bytes], read=_read_texts)


@call_for.register
def _touch(verb: verbs.Touch, keys: Keys) -> Call:
    return _call("touch", [keys.shelf], verb.digests, read=_nothing)


@call_for.register
def _unshelve(verb: verbs.Unshelve, keys: Keys) -> Call:
    return _call("unshelve", [keys.shelf], verb.digests, read=_nothing)


@call_for.register
def _oldest(verb: verbs.Oldest, keys: Keys) -> Call:
    return _call("oldest", [keys.shelf], [verb.size_bytes], read=_read_texts)


@call_for.register
def _read_shelf(verb: verbs.ReadShelf, keys: Keys) -> Call:
    return _call("read_shelf", [keys.shelf], (), read=lambda reply: verbs.Shelf(*reply))


@call_for.register
def _on_shelf(verb: verbs.OnShelf, keys: Keys) -> Call:
    def read(reply: Sequence[int]) -> Sequence[bool]:
        return [bool(found) for found in reply]

    return _call("on_shelf", [keys.shelf], verb.digests, read=read)


@call_for.register
def _put_blob(verb: verbs.PutBlob, keys: Keys) -> Call:
    arguments = (verb.data, math.ceil(verb.lifetime_seconds * 1000))
    return _call("put_blob", [keys.bytes_of("blob", verb.digest)], arguments, read=_nothing)


# ── flights ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _publish(verb: verbs.Publish, keys: Keys) -> Call:
    both = [keys.events(verb.flight), keys.event_ids(verb.flight)]
    channel = keys.wake(verb.flight)
    arguments = (verb.event_id, verb.event, _micros(verb.lifetime_seconds), channel)
    return _call("publish", both, arguments, read=_nothing)


@call_for.register
def _read_events(verb: verbs.ReadEvents, keys: Keys) -> Call:
    return Call(("LRANGE", keys.events(verb.flight), verb.after, -1), _as_is)


# ── workers ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _beat(verb: verbs.Beat, keys: Keys) -> Call:
    return _call("beat", [keys.books], [verb.worker], read=_nothing)


@call_for.register
def _dead_workers(verb: verbs.DeadWorkers, keys: Keys) -> Call:
    return _call("dead_workers", [keys.books], [_micros(verb.after_seconds)], read=_read_texts)


@call_for.register
def _retire(verb: verbs.Retire, keys: Keys) -> Call:
    return _call("retire", [keys.books], [verb.worker], read=bool)


# ── the books ───────────────────────────────────────────────────────────────────────────────


def _take_arguments(takes: Iterable[Take]) -> list[Argument]:
    arguments: list[Argument] = []
    for (scope, unit, period, maximum), amount in takes:
        arguments += (scope, unit, period, "" if maximum is None else maximum, amount)
    return arguments


def _read_states(flat: Sequence[int]) -> tuple[MeterState, ...]:
    resets, retries = ([micros / SECOND for micros in flat[place::4]] for place in (2, 3))
    rows = zip(flat[0::4], flat[1::4], resets, retries, strict=True)
    return tuple(map(MeterState._make, rows))


def _index(number: int) -> int | None:
    return None if number < 0 else number


@call_for.register
@lru_cache(maxsize=MOST_WRITTEN)
def _admit(verb: verbs.Admit, keys: Keys) -> Call:
    """Every request of a key asks this again, and writing forty arguments takes a while."""

    def read(reply: Sequence[Any]) -> verbs.Admission:
        is_current, *rest = reply
        if not is_current:
            return verbs.Admission(refused=None, record=rest[0], states=())
        refused, states = rest
        return verbs.Admission(_index(refused), None, _read_states(states))

    arguments = [verb.name, verb.expect, *_take_arguments(verb.takes)]
    return _written(_call("admit", [keys.books, keys.records(verb.space)], arguments, read=read))


@call_for.register
def _reserve(verb: verbs.Reserve, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Reservation:
        refused, states, now = reply
        return verbs.Reservation(_index(refused), _read_states(states), now / SECOND)

    arguments = [verb.purchase, verb.worker, verb.payload, *_take_arguments(verb.takes)]
    return _call("reserve", [keys.books], arguments, read=read)


@call_for.register
def _receive(verb: verbs.Receive, keys: Keys) -> Call:
    return _call("receive", [keys.books], [verb.purchase, verb.payload], read=bytes.decode)


@call_for.register
def _settle(verb: verbs.Settle, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Settlement:
        status, presumed, charged, states = reply
        return verbs.Settlement(
            status=status.decode(),
            charged={unit.decode(): amount for unit, amount in _pairs(charged)},
            presumed=bool(presumed),
            states=_read_states(states),
        )

    flags = (int(verb.presumed), int(verb.correct), *_optional(verb.record))
    arguments = (verb.purchase, *flags, *_flat(verb.charge.items()))
    return _call("settle", [keys.books], arguments, read=read)


@call_for.register
def _open_journals(verb: verbs.OpenJournals, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Sequence[verbs.Journal]:
        fields = iter(reply)
        return [
            verbs.Journal(purchase.decode(), worker.decode(), _open_state(state), payload)
            for purchase, worker, state, payload in zip(*[fields] * 4, strict=True)
        ]

    workers = () if verb.worker is None else (verb.worker,)
    return _call("open_journals", [keys.books], workers, read=read)


def _open_state(state: bytes) -> Any:
    return state.decode()


@call_for.register
def _read_meters(verb: verbs.ReadMeters, keys: Keys) -> Call:
    looks = _take_arguments(Take(meter) for meter in verb.meters)
    return _call("read_meters", [keys.books], looks, read=_read_states)


@call_for.register
def _append(verb: verbs.Append, keys: Keys) -> Call:
    return _call("append", [keys.books], [verb.batch_id, *verb.records], read=_nothing)


@call_for.register
def _read_ledger(verb: verbs.ReadLedger, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Sequence[tuple[str, bytes]]:
        fields = iter(reply)
        triples = zip(*[fields] * 3, strict=True)
        return [(_ledger_id(day, place), record) for day, place, record in triples]

    day, _, position = verb.after.partition("/")
    arguments = (day, _stream_place(position), verb.limit)
    return _call("read_ledger", [keys.books], arguments, read=read)


def _ledger_id(day: bytes, place: bytes) -> str:
    """`<yyyy-mm-dd>/<milliseconds>-<count>`, the count padded so that ids sort as text."""
    milliseconds, count = place.split(b"-")
    return f"{day.decode()}/{int(milliseconds):015}-{int(count):06}"


def _stream_place(position: str) -> str:
    """Where a day's stream is read from: behind that position, or from its start."""
    if not position:
        return "-"
    milliseconds, _, count = position.partition("-")
    return f"({int(milliseconds)}-{int(count or 0)}"


@call_for.register
def _sweep(verb: verbs.Sweep, keys: Keys) -> Call:
    """Every key that ends has a time to live; only what lies on the shelf has none."""
    return _call("sweep", [keys.shelf], [verb.limit], read=_as_is)


# ── the server itself ───────────────────────────────────────────────────────────────────────


@call_for.register
def _inspect(_verb: verbs.Inspect, _keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.StoreFacts:
        now, info = reply
        said = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return verbs.StoreFacts(
            "redis",
            now / SECOND,
            eviction_policy=said["maxmemory_policy"],
            maxmemory_bytes=int(said["maxmemory"]) or None,
            is_durable=said["aof_enabled"] == "1",
        )

    return _call("inspect", (), (), read=read)


# ── small change ────────────────────────────────────────────────────────────────────────────


def _micros(seconds: float) -> int:
    return math.ceil(seconds * SECOND)


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    items = iter(flat)
    return zip(items, items, strict=True)


def _flat(pairs: Iterable[tuple[Argument, Argument]]) -> list[Argument]:
    return [item for pair in pairs for item in pair]
