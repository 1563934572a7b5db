"""Which function executes a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.store import commands as verbs
from gateway.store.protocol import Verb
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
    verbs.ReadEntry: _read_entry,
    verbs.Claim: _claim,
    verbs.Extend: _extend,
    verbs.Release: _release,
    verbs.Keep: _keep,
    verbs.Clear: _clear,
    verbs.ScanEntries: _scan_entries,
    verbs.Note: _note,
    verbs.ReadNote: _read_note,
    verbs.DropNote: _drop_note,
    verbs.Enlist: _enlist,
    verbs.ReadList: _read_list,
    verbs.Strike: _strike,
    verbs.Shelve: _shelve,
    verbs.Shrink: _shrink,
    verbs.Touch: _touch,
    verbs.Unshelve: _unshelve,
    verbs.Oldest: _oldest,
    verbs.ReadShelf: _read_shelf,
    verbs.OnShelf: _on_shelf,
    verbs.Publish: _publish,
    verbs.ReadEvents: _read_events,
}


BOOKS: Final[Performers] = {
    verbs.Beat: _beat,
    verbs.DeadWorkers: _dead_workers,
    verbs.Retire: _retire,
    verbs.ReadMeters: _read_meters,
    verbs.Admit: _admit,
    verbs.Reserve: _reserve,
    verbs.Receive: _receive,
    verbs.Settle: _settle,
    verbs.OpenJournals: _open_journals,
    verbs.Append: _append,
    verbs.ReadLedger: _read_ledger,
}


def perform(tx: Transaction, verb: Verb[Any]) -> Any:
    """Runs one verb and answers what it promises."""
    return _PERFORMERS[type(verb)](tx, verb)


def is_reading(batch: Sequence[Verb[Any]]) -> bool:
    """Whether no verb of the batch writes."""
    return all(type(verb) in _READING for verb in batch)


_PERFORMERS: Final[Performers] = {
    verbs.Get: _get,
    verbs.Put: _put,
    verbs.Scan: _scan,
    verbs.Sweep: _sweep,
    verbs.Inspect: _inspect,
    **CACHE,
    **BOOKS,
}

_READING: Final = frozenset(
    {
        verbs.Get,
        verbs.Scan,
        verbs.ReadEntry,
        verbs.ScanEntries,
        verbs.ReadNote,
        verbs.ReadList,
        verbs.Oldest,
        verbs.ReadShelf,
        verbs.OnShelf,
        verbs.ReadEvents,
        verbs.DeadWorkers,
        verbs.ReadMeters,
        verbs.OpenJournals,
        verbs.ReadLedger,
        verbs.Inspect,
    }
)
