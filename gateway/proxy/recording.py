"""Records requests that bought nothing; a purchase records itself when it is settled."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from gateway.billing.ledger import Ledger
from gateway.errors import GatewayError, LimitExceeded
from gateway.metrics import Metrics
from gateway.proxy.context import RequestContext
from gateway.proxy.result import Answer
from gateway.request.headers import asks_for_dry_run

log = structlog.get_logger(__name__)


class Recorder:
    """Writes ledger records and counts them."""

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        on_refused: Callable[[str, str], None] = lambda subject, limit: None,
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._on_refused = on_refused
        """Called with the limit subject and the limit that refused a purchase, or would have."""

    def answered(self, context: RequestContext, answer: Answer) -> None:
        """Records a request that got images."""
        context.outcome = answer.outcome
        self._count_shadowed(context)
        # The settlement of the purchase writes the record.
        if context.purchase.has_begun:
            return
        echoed = answer.images[0][0].echoed if answer.images else {}
        record = context.record.but(
            size=echoed.get("size", context.record.size),
            quality=echoed.get("quality", context.record.quality),
            outcome=answer.outcome,
            saved_micros=answer.saved_micros,
            images_served=len(answer.images),
            latency_ms=self._latency_ms(context),
        )
        self._ledger.add(record)
        self._metrics.money.served(record, len(answer.images))

    def failed(self, context: RequestContext, error: GatewayError) -> None:
        """Records a request that got an error. A dry run leaves no record."""
        if asks_for_dry_run(context.headers.items()):
            return
        self._count_shadowed(context)
        if context.purchase.has_begun:
            context.outcome = "failed"
            return
        context.outcome = "collapsed" if context.is_follower else "refused"
        limit = error if isinstance(error, LimitExceeded) else None
        record = context.record.but(
            outcome=context.outcome,
            # Refusals share a record, so they have no flags of their own.
            flags=(*context.record.flags, "flight_failed") if context.is_follower else (),
            error=error.code,
            status=error.status,
            limit=limit and limit.reason,
            scope=limit and limit.scope,
            latency_ms=self._latency_ms(context),
        )
        if context.is_follower:
            self._ledger.add(record)
        else:
            self._ledger.add_refusal(record)
            if limit is not None and limit.refusal is not None:
                self._on_refused(limit.refusal.subject_name, limit.refusal.limit)
            self._metrics.requests.refused(context.principal.key_name, _reason(error))

    def _count_shadowed(self, context: RequestContext) -> None:
        """Counts the limits that would have refused the request if they were enforced."""
        if not (context.shadowed or context.purchase.shadowed):
            return
        key = context.principal.key_name
        for state in (*context.shadowed, *context.purchase.shadowed):
            self._metrics.requests.shadowed(key, state.limit.name)
            log.info("shadow_limit_exceeded", key=key, scope=state.scope, limit=state.limit.name)
            self._on_refused(state.subject.name, state.limit.name)

    def _latency_ms(self, context: RequestContext) -> int:
        return max(0, int((self._clock() - context.time) * 1000))  # the clock may be set back


def _reason(error: GatewayError) -> str:
    return error.reason if isinstance(error, LimitExceeded) else error.code or str(error.status)
