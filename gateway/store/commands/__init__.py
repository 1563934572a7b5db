"""The commands of the store, by aggregate.

Each is one atomic step. `Command[R]` names the type of its result; a full store raises
`errors.StoreFull` for a command that writes, unless its docstring says that it works there too.
"""

from __future__ import annotations

from gateway.store.commands.blobs import PutBlob
from gateway.store.commands.counters import (
    WINDOW_GRACE_SECONDS,
    Admission,
    Admit,
    Consumption,
    Counter,
    CounterState,
    PeekCounters,
)
from gateway.store.commands.entries import (
    AcquireLease,
    EmptySlots,
    EntriesPage,
    Entry,
    LeaseResult,
    ReadEntry,
    ReleaseLease,
    RenewLease,
    ScanEntries,
    Slot,
    StoreImages,
)
from gateway.store.commands.events import Publish, ReadEvents
from gateway.store.commands.journals import (
    CLOSED_JOURNAL_SECONDS,
    Journal,
    OpenJournals,
    ReadJournalState,
    Receive,
    Reservation,
    Reserve,
    Settle,
    Settlement,
    reserved_by_unit,
)
from gateway.store.commands.ledger import APPENDED_SECONDS, Append, ReadLedger
from gateway.store.commands.lru_index import (
    MAX_EVICTIONS,
    AreTracked,
    EvictionCandidates,
    EvictTo,
    LruTotals,
    ReadLruTotals,
    Touch,
    Track,
    Untrack,
)
from gateway.store.commands.records import CompareAndSet, Get, ReadRecords, Write
from gateway.store.commands.server import Inspect, StoreFacts, Sweep
from gateway.store.commands.sets import (
    AddToBoundedSets,
    AddToSet,
    BoundedSet,
    GetSet,
    RemoveFromSet,
)
from gateway.store.commands.values import DeleteValue, GetValue, SetValue
from gateway.store.commands.workers import Deregister, ExpiredWorkers, Heartbeat

__all__ = [
    "APPENDED_SECONDS",
    "CLOSED_JOURNAL_SECONDS",
    "MAX_EVICTIONS",
    "WINDOW_GRACE_SECONDS",
    "AcquireLease",
    "AddToBoundedSets",
    "AddToSet",
    "Admission",
    "Admit",
    "Append",
    "AreTracked",
    "BoundedSet",
    "CompareAndSet",
    "Consumption",
    "Counter",
    "CounterState",
    "DeleteValue",
    "Deregister",
    "EmptySlots",
    "EntriesPage",
    "Entry",
    "EvictTo",
    "EvictionCandidates",
    "ExpiredWorkers",
    "Get",
    "GetSet",
    "GetValue",
    "Heartbeat",
    "Inspect",
    "Journal",
    "LeaseResult",
    "LruTotals",
    "OpenJournals",
    "PeekCounters",
    "Publish",
    "PutBlob",
    "ReadEntry",
    "ReadEvents",
    "ReadJournalState",
    "ReadLedger",
    "ReadLruTotals",
    "ReadRecords",
    "Receive",
    "ReleaseLease",
    "RemoveFromSet",
    "RenewLease",
    "Reservation",
    "Reserve",
    "ScanEntries",
    "SetValue",
    "Settle",
    "Settlement",
    "Slot",
    "StoreFacts",
    "StoreImages",
    "Sweep",
    "Touch",
    "Track",
    "Untrack",
    "Write",
    "reserved_by_unit",
]
