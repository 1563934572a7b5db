"""Kept reads: results that a process keeps in memory until the store says that they have changed.

This module keeps the results, and knows no server. The store reports the names that were written,
and the memory drops the results that depend on them. Each result has a *source*, such as a
connection, which also reports later writes. A source that may have missed a write is not trusted,
and neither are its results.

A read and a write may cross. So a read is registered as a `Fill` before it is sent. If the store
reports a write of one of its names before the result arrives, the result is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.store.commands import (
    CompareAndSet,
    DeleteValue,
    EmptySlots,
    Entry,
    Get,
    GetValue,
    ProlongSlots,
    ReadEntry,
    ScanRecords,
    SetValue,
    StoreImages,
)
from gateway.store.protocol import Command

MAX_KEPT: Final = 50_000
"""Results that one process keeps."""

MAX_KEPT_BYTES: Final = 32 << 20
"""Bytes of all of them together, about."""

OVERHEAD_BYTES: Final = 900
"""Of a result in memory, besides its content."""

SLOT_OVERHEAD_BYTES: Final = 450
"""Of each slot of an entry, besides its data."""

NOT_KEPT: Final = object()
"""What `ReadMemory.find` returns for a read that is not kept."""


class Source(Protocol):
    """Where results come from. It also reports later writes."""

    @property
    def is_trusted(self) -> bool:
        """Whether it has reported every write so far."""

    def now(self) -> float:
        """The store's clock in Unix seconds."""


@dataclass(slots=True, eq=False)
class Fill:
    """A read whose result is to be kept."""

    command: Command[Any]
    names: tuple[str, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class _Kept:
    value: Any
    size_bytes: int
    fill: Fill


class ReadMemory:
    """The results by command, the least recently used dropped first."""

    def __init__(self, *, max_bytes: int = MAX_KEPT_BYTES, max_count: int = MAX_KEPT) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._size_bytes = 0
        self._is_crowded = False
        """More than half of a bound is used. Until then, which result was used last matters to
        nothing, and is not noted: that takes longer than to find a result."""
        self._kept: OrderedDict[Command[Any], _Kept] = OrderedDict()
        self._filling: dict[Command[Any], Fill] = {}
        self._by_name: dict[str, set[Command[Any]]] = {}
        """The commands, kept or being filled, that read a name."""
        self._watches: dict[str, list[Callable[[], None]]] = {}

    def __len__(self) -> int:
        """How many results are kept."""
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """The bytes of all of them together, about."""
        return self._size_bytes

    def find(self, command: Command[Any]) -> Any:
        """The result as a read would return it now; `NOT_KEPT` without a trusted one."""
        kept = self._kept.get(command)
        if kept is None or not kept.fill.source.is_trusted:
            return NOT_KEPT
        if self._is_crowded:
            self._kept.move_to_end(command)
        value = kept.value
        return Entry(kept.fill.source.now(), value.slots) if type(value) is Entry else value

    def find_all(self, commands: Sequence[Command[Any]]) -> list[Any] | None:
        """The results of all commands as reads would return them now; None if one is missing."""
        # Every hit finds four: as `find`, but a source is asked once.
        kept_results, trusted, found = self._kept, None, []
        for command in commands:
            kept = kept_results.get(command)
            if kept is None:
                return None
            source, value = kept.fill.source, kept.value
            if source is not trusted:
                if not source.is_trusted:
                    return None
                trusted = source
            if self._is_crowded:
                kept_results.move_to_end(command)
            found.append(Entry(source.now(), value.slots) if type(value) is Entry else value)
        return found

    def begin(self, command: Command[Any], source: Source) -> Fill | None:
        """Registers a read before it is sent. None: its result is kept, or being read already."""
        if command in self._filling or self.find(command) is not NOT_KEPT:
            return None
        names = names_read(command)
        fill = self._filling[command] = Fill(command, names, source)
        for name in names:
            self._by_name.setdefault(name, set()).add(command)
        return fill

    def end(self, fill: Fill, value: Any = NOT_KEPT) -> None:
        """Keeps the result of a read; without one, the read has failed."""
        if self._filling.get(fill.command) is not fill:
            return  # a write of one of its names was reported meanwhile
        del self._filling[fill.command]
        size_bytes = OVERHEAD_BYTES + _size_of(value)
        if value is NOT_KEPT or size_bytes > self._max_bytes:
            self._unregister(fill)
            return
        self._drop(fill.command)
        for name in fill.names:  # `_drop` has removed them with an earlier result
            self._by_name.setdefault(name, set()).add(fill.command)
        self._kept[fill.command] = _Kept(value, size_bytes, fill)
        self._size_bytes += size_bytes
        while self._size_bytes > self._max_bytes or len(self._kept) > self._max_count:
            self._drop(next(iter(self._kept)))
        is_crowded = self._size_bytes > self._max_bytes // 2
        self._is_crowded = is_crowded or len(self._kept) > self._max_count // 2
        if self._watches:
            # A watcher may have read it earlier, before a write that no source reported, because
            # nothing had been read over that source yet.
            self._notify(fill.names)

    # ── reports of writes ───────────────────────────────────────────────────────────────────

    def invalidate(self, names: Iterable[str]) -> None:
        """Drops the results that depend on these names."""
        for name in names:
            for command in tuple(self._by_name.get(name, ())):
                self._cancel(command)
            self._notify((name,))

    def forget(self, source: Source | None = None) -> None:
        """Drops the results of a source that may have missed a write; None: of every source."""
        fills = [*self._filling.values(), *(kept.fill for kept in self._kept.values())]
        for fill in fills:
            if source is None or fill.source is source:
                self._cancel(fill.command)
        self.notify_watches()

    def notify_watches(self) -> None:
        """Calls everyone who watches a result.

        For a source that is not trusted any more: its results stay, but `find` skips them.
        """
        self._notify(self._watches)

    def watch(self, command: Command[Any], notify: Callable[[], None]) -> None:
        """Calls `notify` when the result of `command` may have changed, and after each read."""
        for name in names_read(command):
            self._watches.setdefault(name, []).append(notify)

    def _notify(self, names: Iterable[str]) -> None:
        for name in names:
            for notify in self._watches.get(name, ()):
                notify()

    def _cancel(self, command: Command[Any]) -> None:
        if (fill := self._filling.pop(command, None)) is not None:
            self._unregister(fill)
        self._drop(command)

    def _drop(self, command: Command[Any]) -> None:
        if (kept := self._kept.pop(command, None)) is not None:
            self._size_bytes -= kept.size_bytes
            self._unregister(kept.fill)

    def _unregister(self, fill: Fill) -> None:
        if fill.command in self._filling:
            return  # another read of the same is under way
        for name in fill.names:
            commands = self._by_name.get(name)
            if commands is not None:
                commands.discard(fill.command)
                if not commands:
                    del self._by_name[name]


def names_read(command: Command[Any]) -> tuple[str, ...]:
    """The names that a read depends on. Raises `TypeError` for a command that cannot be kept.

    A value with a TTL expires without a write. Keep one only if an expired value does no harm.
    """
    match command:
        case Get(space=space, index=None) | ScanRecords(space=space, after=""):
            return (f"records:{space}",)
        case Get(space=space, index=str(index)):
            return (f"records:{space}", f"records:{index}")
        case ReadEntry(fingerprint=fingerprint):
            return (f"entry:{fingerprint}",)
        case GetValue(space=space, name=name):
            return (f"value:{space}:{name}",)
    raise TypeError(f"The results of {type(command).__name__} cannot be kept.")


WRITERS: Final = frozenset(
    {CompareAndSet, DeleteValue, EmptySlots, ProlongSlots, SetValue, StoreImages}
)
"""The commands that write what can be kept."""


def names_written(commands: Iterable[Command[Any]]) -> Collection[str]:
    """The names that commands write, and that a read can depend on."""
    names: list[str] = []
    for command in commands:
        if type(command) in WRITERS:  # faster than the cases, for a batch has many
            names += _names_of(command)
    return names


def _names_of(command: Command[Any]) -> Sequence[str]:
    match command:
        case StoreImages() | EmptySlots() | ProlongSlots():
            return (f"entry:{command.fingerprint}",)
        case SetValue() | DeleteValue():
            return (f"value:{command.space}:{command.name}",)
        case CompareAndSet(changes=changes):
            return [f"records:{write.space}" for write in changes]
    raise TypeError(f"{type(command).__name__} is not one of `WRITERS`.")


def names_announced(commands: Iterable[Command[Any]]) -> Collection[str]:
    """Those of `names_written` that a process announces itself: see `redis.cluster.tracking`.

    Only changes that an administrator waits for, because every purchase writes entries.
    """
    names: dict[str, None] = {}
    for command in commands:
        if type(command) not in WRITERS:
            continue
        match command:
            case CompareAndSet() | EmptySlots() | SetValue(is_kept=True):
                names |= dict.fromkeys(_names_of(command))
    return names


def _size_of(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Entry):
        return sum(SLOT_OVERHEAD_BYTES + len(slot.data) for slot in value.slots.values())
    return OVERHEAD_BYTES
