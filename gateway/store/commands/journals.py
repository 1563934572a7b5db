"""Journals: a purchase is reserved, received and settled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Final, Literal

from gateway.frozen import frozen
from gateway.store.commands.counters import Consumption, CounterState
from gateway.store.protocol import Command

CLOSED_JOURNAL_SECONDS: Final = 7 * 86_400
"""How long a settled journal is kept, so that a repeated settlement finds it."""

MAX_QUEUED: Final = 10_000
"""Purchases that wait for one account; a further one is refused."""

HEAD_SECONDS: Final = 2
"""How long the others in a queue wait for the worker whose turn it is."""

MAX_STOP_SECONDS: Final = 120
"""For how long an account's own word stops its queue at most."""

FREE_JOURNAL_SECONDS: Final = 300
"""The same for one that is charged nothing and will not be corrected: clients can make any number
of these for nothing, and a repetition after this time moves no money."""


@frozen
class Place:
    """What a purchase needs of the account that it is sent to, which may make it wait.

    The account's bucket holds and refills `images_per_minute`, and `concurrent` purchases of it are
    open at a time; None: no such limit. With neither nothing waits.
    """

    account: str
    """The upstream's name."""
    key: str
    """Whose turn it is: the keys of a queue take turns."""
    images: int
    priority: int
    """Images that the key gets in each round, from 1 to `images.MAX_PRIORITY`."""
    images_per_minute: int | None
    concurrent: int | None
    max_wait: float | None = None
    """Seconds: a purchase that would have to wait longer is not reserved; None: it waits."""

    @property
    def is_limited(self) -> bool:
        """Whether a purchase ever waits for this account."""
        return self.images_per_minute is not None or self.concurrent is not None


@frozen
class Turn:
    """Whether a purchase may be sent to its account now.

    `taken`: yes, the account's tokens are taken. `queued`: not yet. `refused`: the queue is full,
    or longer than `Place.max_wait`; then nothing was reserved.
    """

    state: Literal["taken", "queued", "refused"] = "taken"
    position: int = 0
    """In the queue, from 1 on; 0 for a turn that is taken."""
    wait_seconds: float = 0.0
    """The estimate at the account's rate; without a rate 0."""


@frozen
class Reservation:
    """`denied` as in `Admission`; then nothing was reserved and no journal was opened."""

    denied: int | None
    states: tuple[CounterState, ...]
    now: float
    """The store's time in Unix seconds."""
    reserved_at: float = 0.0
    """The same at the first of repeated reservations."""
    exceeded: tuple[int, ...] = ()
    """As in `Admission`; empty for a repetition."""
    turn: Turn = Turn()
    """If nothing was denied. `refused` is no reservation either."""


@frozen
class Reserve(Command[Reservation]):
    """Reserves every amount or none, and opens the purchase's journal in state `reserved`.

    A window denies if spent + reserved + amount > maximum. The current windows apply, and the
    journal records them. If the journal exists already, nothing changes and the result is as if
    the amounts were reserved. With `payload` another worker can finish the purchase. The command
    also counts as a heartbeat of the worker.

    `amounts` (unit → amount) are reserved in all calendar windows of the `subjects`, whether or not
    a consumption limits them. A counter that both name is reserved in once.

    With a `place`, the purchase takes the account's tokens in the same step, or, if others wait or
    there are not enough, the journal opens as `queued` until its turn, see `TakeTurns`.
    """

    purchase: str
    worker: str
    consumptions: tuple[Consumption, ...]
    payload: bytes
    subjects: tuple[str, ...] = ()
    amounts: Mapping[str, int] = field(default_factory=dict)
    place: Place | None = None


@frozen
class Reroute(Command[Reservation]):
    """Replaces reservation and payload of an open journal, for another account.

    As `Reserve`, in one step with the release of what was reserved: the windows of now apply, and
    `reserved_at` is the time of this command. If it is denied or its turn refused, nothing changes.
    Token buckets give only what the purchase needs more than before.

    The worker has to know that nothing was sent, or that the account charges nothing. A journal
    that is `received`, closed or missing is left alone: `reserved_at` is 0 then.
    """

    purchase: str
    worker: str
    consumptions: tuple[Consumption, ...]
    payload: bytes
    subjects: tuple[str, ...] = ()
    amounts: Mapping[str, int] = field(default_factory=dict)
    place: Place | None = None


@frozen
class Receive(Command[Literal["received", "settled", "unknown"]]):
    """Moves a journal from `reserved` to `received` and replaces its payload.

    Returns the journal's state afterwards. It is `settled`, and nothing changed, if another worker
    has settled the purchase meanwhile.
    """

    purchase: str
    payload: bytes


@frozen
class Settlement:
    """`settled`: by this command. `already`: by an earlier one. `corrected`: see `Settle`."""

    status: Literal["settled", "already", "corrected", "unknown"]
    charged: Mapping[str, int]
    """Unit → amount that the journal is charged with now."""
    presumed: bool
    """The charge is an estimate that a late response may still correct."""
    states: tuple[CounterState, ...]
    """The counters of the reservation as they are now; empty for `unknown`, and they may be empty
    for `already` if nothing was charged."""
    now: float = 0.0
    """The store's time in Unix seconds."""
    attempt: str = ""
    """That of the command that made the latest charge. If an earlier reply was lost, `already` may
    be the work of the same attempt."""
    corrected_from: Mapping[str, int] | None = None
    """The presumed charge that was corrected to `charged`; None if there was no correction."""
    is_unreserved: bool = False
    """The purchase had no journal, and was charged all the same."""


@frozen
class LostReservation:
    """How to charge a purchase whose journal the store has lost.

    The charge goes to the windows of the `subjects` at `reserved_at` (the store's Unix seconds).
    """

    subjects: tuple[str, ...]
    reserved_at: float
    record: bytes
    """Appended to the ledger instead of the usual record."""


@frozen
class Settle(Command[Settlement]):
    """Closes a journal: counters, ledger record and state change in one step, exactly once.

    The reserved amounts are released, and `charge` (unit → amount) is added to spent in the
    windows of the reservation. `record` is appended to the ledger; None: no record. Buckets are
    not refilled.

    A closed journal is left alone, unless it was closed as `presumed` and `correct` is set: then
    the windows change by the difference, `record` is appended, and the charge is final.

    A purchase without a journal is closed too, so that a reservation that timed out and runs later
    reserves nothing. With `lost` it is settled in the same step. Without, it is charged nothing
    (`unknown`).

    Each of the running `totals` moves in the same step: charged or corrected by the change of
    `usd_micros`, and, when the journal is closed, saved by `saved_micros`.
    """

    purchase: str
    charge: Mapping[str, int]
    record: bytes | None
    presumed: bool = False
    correct: bool = False
    attempt: str = ""
    """The same for all repetitions of a command."""
    lost: LostReservation | None = None
    totals: tuple[str, ...] = ()
    saved_micros: int = 0


@frozen
class Journal:
    """An open purchase."""

    purchase: str
    worker: str
    state: Literal["queued", "reserved", "received"]
    payload: bytes
    reserved_at: float = field(default=0.0, compare=False)
    """The store's time of the reservation in Unix seconds."""
    reserved: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Unit → reserved amount; without those that cannot be read."""
    subjects: tuple[str, ...] = field(default=(), compare=False)
    """Whose counters the amounts are reserved in."""


def reserved_by_unit(consumptions: Iterable[tuple[str, str, int]]) -> dict[str, Any]:
    """`reserved` and `subjects` of a journal, from its subjects, units and amounts."""
    reserved: dict[str, int] = {}
    subjects: dict[str, None] = {}
    for subject, unit, amount in consumptions:
        # The same amount is reserved in several windows.
        reserved[unit] = max(amount, reserved.get(unit, 0))
        subjects[subject] = None
    return {"reserved": reserved, "subjects": tuple(subjects)}


@frozen
class OpenJournals(Command[Sequence[Journal]]):
    """The oldest open journals, up to `limit`, of a worker, or of all workers (None).

    With `text`, only those of which the payload contains it.
    """

    worker: str | None = None
    limit: int = 1000
    text: bytes = b""


@frozen
class ReadJournalState(Command[Literal["queued", "reserved", "received", "settled", "unknown"]]):
    """The state of a purchase's journal; `unknown` if there is none."""

    purchase: str


@frozen
class Turns:
    """What a worker may send to an account now."""

    taken: tuple[str, ...]
    """The worker's purchases whose turn has come, until it has `seen` them."""
    waiting: int
    """Purchases that wait for the account, of all workers."""
    next_in: float
    """Seconds until the worker's next turn may come, at the account's rate; 0 if it waits for a
    purchase to end, or for another worker."""
    has_more: bool = False
    """Further turns may have come: to be asked for at once."""


@frozen
class TakeTurns(Command[Turns]):
    """Takes an account's tokens for those of a worker's queued purchases whose turn it is.

    Their journals become `reserved` in the same step. The tokens are taken in the order of the
    queue: keys take turns, each gets `Place.priority` images a round, and its oldest purchase is
    first. A turn of another worker that it does not take within `HEAD_SECONDS` is passed over, and
    so are all its turns until it asks again.

    `seen` are purchases that earlier replies have named: a reply may be lost.
    """

    account: str
    worker: str
    images_per_minute: int | None
    concurrent: int | None
    seen: tuple[str, ...] = ()


@frozen
class ReadTurns(Command[Sequence[Turn]]):
    """Where purchases are in an account's queue, in their order.

    `taken`: their journals are reserved. `refused`: they have neither a turn nor a place.
    """

    account: str
    images_per_minute: int | None
    concurrent: int | None
    purchases: tuple[str, ...]


@frozen
class CorrectAccount(Command[None]):
    """Corrects an account's bucket by what upstream says of it.

    It never holds more than before. `stop_seconds` stops the queue for as long, at most for
    `MAX_STOP_SECONDS`.
    """

    account: str
    images_per_minute: int | None
    remaining: int | None = None
    """Images that upstream would still take."""
    stop_seconds: float = 0.0
