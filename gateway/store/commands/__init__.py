"""The store's language: every command, by aggregate."""

from __future__ import annotations

from gateway.store.commands.blobs import PutBlob
from gateway.store.commands.counters import (
    WINDOW_GRACE_SECONDS,
    Admission,
    Admit,
    Meter,
    MeterState,
    ReadMeters,
    Take,
)
from gateway.store.commands.entries import (
    Claim,
    Claimed,
    Clear,
    EntriesPage,
    Entry,
    Extend,
    Keep,
    ReadEntry,
    Release,
    ScanEntries,
    Slot,
)
from gateway.store.commands.events import Publish, ReadEvents
from gateway.store.commands.journals import (
    CLOSED_JOURNAL_SECONDS,
    Journal,
    OpenJournals,
    Receive,
    Reservation,
    Reserve,
    Settle,
    Settlement,
)
from gateway.store.commands.ledger import APPENDED_SECONDS, Append, ReadLedger
from gateway.store.commands.lru_index import (
    MOST_VICTIMS,
    Oldest,
    OnShelf,
    ReadShelf,
    Shelf,
    Shelve,
    Shrink,
    Touch,
    Unshelve,
)
from gateway.store.commands.records import Change, Get, Put, Scan
from gateway.store.commands.server import Inspect, StoreFacts, Sweep
from gateway.store.commands.sets import Enlist, ReadList, Strike
from gateway.store.commands.values import DropNote, Note, ReadNote
from gateway.store.commands.workers import Beat, DeadWorkers, Retire

__all__ = [
    "APPENDED_SECONDS",
    "CLOSED_JOURNAL_SECONDS",
    "MOST_VICTIMS",
    "WINDOW_GRACE_SECONDS",
    "Admission",
    "Admit",
    "Append",
    "Beat",
    "Change",
    "Claim",
    "Claimed",
    "Clear",
    "DeadWorkers",
    "DropNote",
    "Enlist",
    "EntriesPage",
    "Entry",
    "Extend",
    "Get",
    "Inspect",
    "Journal",
    "Keep",
    "Meter",
    "MeterState",
    "Note",
    "Oldest",
    "OnShelf",
    "OpenJournals",
    "Publish",
    "Put",
    "PutBlob",
    "ReadEntry",
    "ReadEvents",
    "ReadLedger",
    "ReadList",
    "ReadMeters",
    "ReadNote",
    "ReadShelf",
    "Receive",
    "Release",
    "Reservation",
    "Reserve",
    "Retire",
    "Scan",
    "ScanEntries",
    "Settle",
    "Settlement",
    "Shelf",
    "Shelve",
    "Shrink",
    "Slot",
    "StoreFacts",
    "Strike",
    "Sweep",
    "Take",
    "Touch",
    "Unshelve",
]
