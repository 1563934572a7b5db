"""Which function executes a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.store import commands
from gateway.store.protocol import Command
from gateway.store.sqlite.counters import _admit, _read_meters
from gateway.store.sqlite.entries import (
    _claim,
    _clear,
    _extend,
    _keep,
    _read_entry,
    _release,
    _scan_entries,
)
from gateway.store.sqlite.events import _publish, _read_events
from gateway.store.sqlite.journals import _open_journals, _receive, _reserve, _settle
from gateway.store.sqlite.ledger import _append, _read_ledger
from gateway.store.sqlite.lru_index import (
    _oldest,
    _on_shelf,
    _read_shelf,
    _shelve,
    _shrink,
    _touch,
    _unshelve,
)
from gateway.store.sqlite.records import _get, _put, _scan
from gateway.store.sqlite.schema import Performers, Transaction
from gateway.store.sqlite.sets import _enlist, _read_list, _strike
from gateway.store.sqlite.sweeping import _inspect, _sweep
from gateway.store.sqlite.values import _drop_note, _note, _read_note
from gateway.store.sqlite.workers import _beat, _dead_workers, _retire

CACHE: Final[Performers] = {
    commands.ReadEntry: _read_entry,
    commands.AcquireLease: _claim,
    commands.RenewLease: _extend,
    commands.ReleaseLease: _release,
    commands.StoreImages: _keep,
    commands.EmptySlots: _clear,
    commands.ScanEntries: _scan_entries,
    commands.SetValue: _note,
    commands.GetValue: _read_note,
    commands.DeleteValue: _drop_note,
    commands.AddToSet: _enlist,
    commands.GetSet: _read_list,
    commands.RemoveFromSet: _strike,
    commands.Track: _shelve,
    commands.EvictTo: _shrink,
    commands.Touch: _touch,
    commands.Untrack: _unshelve,
    commands.EvictionCandidates: _oldest,
    commands.ReadLruTotals: _read_shelf,
    commands.AreTracked: _on_shelf,
    commands.Publish: _publish,
    commands.ReadEvents: _read_events,
}


BOOKS: Final[Performers] = {
    commands.Heartbeat: _beat,
    commands.ExpiredWorkers: _dead_workers,
    commands.Deregister: _retire,
    commands.PeekCounters: _read_meters,
    commands.Admit: _admit,
    commands.Reserve: _reserve,
    commands.Receive: _receive,
    commands.Settle: _settle,
    commands.OpenJournals: _open_journals,
    commands.Append: _append,
    commands.ReadLedger: _read_ledger,
}


def perform(tx: Transaction, command: Command[Any]) -> Any:
    """Runs one verb and answers what it promises."""
    return _PERFORMERS[type(command)](tx, command)


def is_reading(batch: Sequence[Command[Any]]) -> bool:
    """Whether no verb of the batch writes."""
    return all(type(command) in _READING for command in batch)


_PERFORMERS: Final[Performers] = {
    commands.Get: _get,
    commands.CompareAndSet: _put,
    commands.ReadRecords: _scan,
    commands.Sweep: _sweep,
    commands.Inspect: _inspect,
    **CACHE,
    **BOOKS,
}

_READING: Final = frozenset(
    {
        commands.Get,
        commands.ReadRecords,
        commands.ReadEntry,
        commands.ScanEntries,
        commands.GetValue,
        commands.GetSet,
        commands.EvictionCandidates,
        commands.ReadLruTotals,
        commands.AreTracked,
        commands.ReadEvents,
        commands.ExpiredWorkers,
        commands.PeekCounters,
        commands.OpenJournals,
        commands.ReadLedger,
        commands.Inspect,
    }
)
