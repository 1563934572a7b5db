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
    LostReservation,
    OpenJournals,
    Receive,
    Reservation,
    Reserve,
    Settle,
    Settlement,
)
from gateway.store.commands.ledger import (
    LEDGER_END,
    MAX_REFUSAL_REASONS,
    MINUTE_SECONDS,
    RECORD_OVERHEAD_BYTES,
    WRITER_SECONDS,
    Append,
    AppendRefusals,
    ReadLedger,
    Refusals,
    TrimLedger,
    Trimmed,
)
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
from gateway.store.commands.running_totals import ReadRunningTotals, RunningTotal
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
    "CLOSED_JOURNAL_SECONDS",
    "LEDGER_END",
    "MAX_EVICTIONS",
    "MAX_REFUSAL_REASONS",
    "MINUTE_SECONDS",
    "RECORD_OVERHEAD_BYTES",
    "WINDOW_GRACE_SECONDS",
    "WRITER_SECONDS",
    "AcquireLease",
    "AddToBoundedSets",
    "AddToSet",
    "Admission",
    "Admit",
    "Append",
    "AppendRefusals",
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
    "LostReservation",
    "LruTotals",
    "OpenJournals",
    "PeekCounters",
    "Publish",
    "PutBlob",
    "ReadEntry",
    "ReadEvents",
    "ReadLedger",
    "ReadLruTotals",
    "ReadRecords",
    "ReadRunningTotals",
    "Receive",
    "Refusals",
    "ReleaseLease",
    "RemoveFromSet",
    "RenewLease",
    "Reservation",
    "Reserve",
    "RunningTotal",
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
    "TrimLedger",
    "Trimmed",
    "Untrack",
    "Write",
]
