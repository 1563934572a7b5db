"""The context of one request, from its arrival to its answer.

It holds no live HTTP object: `api/` fills it from HTTP and renders the result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from gateway.access.key_spaces import Credential
from gateway.access.keys import Key
from gateway.access.policy import Policy
from gateway.billing.counted_limits import LimitState
from gateway.billing.quota import flag_shadowed, latest_states
from gateway.cache.entries import CachedImage
from gateway.cache.flight_result import FlightResult
from gateway.cache.idempotency_results import IdempotentRequest
from gateway.cache.partial_images import Subscriber
from gateway.catalog import Model
from gateway.catalog.lifecycle import is_announced, utc_date
from gateway.images import ImageRequest, Outcome, Principal, Record
from gateway.purchasing.purchase import PurchaseSummary
from gateway.request.cache_control import CachePolicy
from gateway.trace_context import NO_TRACE_CONTEXT, TraceContext

_DEFAULT_CACHE_POLICY: Final = CachePolicy()


@dataclass
class RequestContext:
    """One authenticated request, from its arrival to its answer."""

    request_id: str
    time: float
    """Unix seconds at which its head was read."""
    key: Key
    credential: Credential
    policy: Policy
    """The snapshot that holds to the end of this request."""
    deployment: str | None
    """The model that the path names, as Azure's clients do; None for other paths."""
    content_type: str | None
    headers: Mapping[str, str]
    """As the client sent them; `request.headers` reads those that are the gateway's."""
    read_body: Callable[[], Awaitable[bytes]]
    """Raises 408 or 413 for a body that is too slow or too large."""
    record: Record
    """The ledger record as far as it is known."""
    trace: TraceContext = NO_TRACE_CONTEXT
    on_stream: Callable[[RequestContext, Subscriber], None] = lambda context, subscriber: None
    """Starts to answer a client that asked for a stream."""
    is_connected: Callable[[], bool] = lambda: True
    """Whether the client has not left, as far as this worker can tell."""
    # What is learnt on the way. Without slots, and not in `__init__`: a default of the class costs
    # nothing, and a hit keeps most of them.
    subscriber: Subscriber | None = field(default=None, init=False)
    """Receives the partial images; one for all flights, so that none is sent twice."""
    purchase: PurchaseSummary = field(default_factory=PurchaseSummary, init=False)
    limits: Sequence[LimitState] = field(default=(), init=False)
    known_rate_headers: Mapping[str, str] | None = field(default=None, init=False)
    """Of a hit from memory: the headers that show `limits`."""
    shadowed: tuple[LimitState, ...] = field(default=(), init=False)
    """The limits in shadow mode that it exceeded without a purchase."""
    is_follower: bool = field(default=False, init=False)
    """It followed another request's purchase and bought nothing itself."""
    followed_traces: Collection[str] = field(default=(), init=False)
    """The traceparents of the purchases that it followed, if they are traced."""
    served_by: str | None = field(default=None, init=False)
    """The model that serves the alias that the client asked for; None if it asked for a model."""
    retires: date | None = field(default=None, init=False)
    """The shutdown date of the model, from `WARNING_DAYS` before it."""
    outcome: Outcome = field(default="refused", init=False)
    is_admitted: bool = field(default=False, init=False)
    """It was counted against the key's requests."""
    was_looked_up: bool = field(default=False, init=False)
    """It was admitted, and its entry was read."""
    needed_no_store: bool = field(default=False, init=False)
    """It was admitted, and its entry found, in this worker's memory."""
    found_in_memory: Mapping[int, CachedImage] | None = field(default=None, init=False)
    """The images of its entry, found without the store: all that it asks for."""
    interpretation: tuple[Any, Any] | None = field(default=None, init=False)
    """Of a body that this worker did not know, for `Interpreter.remember`."""
    cache_policy: CachePolicy = field(default=_DEFAULT_CACHE_POLICY, init=False)
    is_reload: bool = field(default=False, init=False)
    """It buys, or would buy, although the entry has images: its client refused those."""
    notices: tuple[str, ...] = field(default=(), init=False)
    """What the gateway did not do for this request although a header asked for it."""
    idempotent: IdempotentRequest | None = field(default=None, init=False)
    """The idempotency key that it has locked."""
    is_stored_result: bool = field(default=False, init=False)
    """It is answered with the stored result of its idempotency key."""

    @property
    def is_from_memory(self) -> bool:
        """Whether its entry was found without the store."""
        return self.found_in_memory is not None

    @property
    def principal(self) -> Principal:
        """Whose limits this request counts against."""
        return self.key.principal

    @property
    def today(self) -> date:
        """The date in UTC on which it arrived."""
        return utc_date(self.time)

    @property
    def latest_limits(self) -> Sequence[LimitState]:
        """The limits as last seen: a settlement is later than the admission."""
        return latest_states(self.limits, self.purchase.limits)

    def note(self, notice: str) -> None:
        """Adds to `notices`."""
        self.notices = (*self.notices, notice)

    def note_model(self, model: Model, *, asked: str | None) -> None:
        """Remembers which model serves it, and when that is shut down."""
        self.served_by = None if asked is None else model.id
        is_shown = model.shutdown is not None and is_announced(model.shutdown, self.today)
        self.retires = model.shutdown if is_shown else None

    def use_key(self, key: Key) -> None:
        """Goes on with a newer version of the key, also in the ledger record."""
        self.key = key
        principal = key.principal
        self.record = self.record.but(
            key=principal.key_name, team=principal.team, labels=principal.labels
        )

    def note_shadowed(self, shadowed: Sequence[LimitState]) -> None:
        """Remembers limits in shadow mode that it exceeds, also in the ledger record."""
        self.shadowed += tuple(shadowed)
        self.record = flag_shadowed(self.record, shadowed)

    def note_flights(self, result: FlightResult) -> None:
        """Remembers whether it followed another request's purchase, also in the ledger record."""
        self.is_follower, self.followed_traces = result.is_follower, result.traces
        if result.is_follower:
            self.record = self.record.but(followed=result.last_followed)

    def subscribe(self, request: ImageRequest) -> Subscriber | None:
        """The subscriber of a request for a stream; its first call starts the stream."""
        if request.stream and self.subscriber is None:
            self.subscriber = Subscriber(request.partial_images)
            self.on_stream(self, self.subscriber)
        return self.subscriber
