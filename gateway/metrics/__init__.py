"""The metrics of `docs/reference/metrics.md`, and their text form.

The number of series is bounded: see `labels` and `admission`.
"""

from __future__ import annotations

from gateway.metrics.families import MoneyMetrics, PurchaseMetrics
from gateway.metrics.labels import MAX_KEYS
from gateway.metrics.registry import CONTENT_TYPE, Metrics, forget_worker

__all__ = [
    "CONTENT_TYPE",
    "MAX_KEYS",
    "Metrics",
    "MoneyMetrics",
    "PurchaseMetrics",
    "forget_worker",
]
