"""What a worker opens before its components are constructed, and closes after them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.metrics import PurchaseMetrics
from gateway.store.protocol import BlobStore
from gateway.store.wrappers import EvictingStore
from gateway.tracing import NO_TRACER, Tracer
from gateway.upstream.fetch import LinkFetcher
from gateway.upstream.pool import Pool
from gateway.webhooks.sender import GuardedHttp


@dataclass(frozen=True, slots=True)
class Resources:
    """The stores, and the clients of other servers. `assembly` opens and closes them."""

    store: EvictingStore
    blob_store: BlobStore
    links: LinkFetcher
    pool: Pool
    observers: Mapping[str, PurchaseMetrics]
    """Of the purchases from each account of the pool, by name."""
    http: GuardedHttp
    """For webhooks."""
    traces: Tracer | None
    """None if traces are off."""

    @property
    def tracer(self) -> Tracer:
        """The tracer, or one that records nothing."""
        return self.traces or NO_TRACER
