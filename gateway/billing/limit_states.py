"""The limits of a limit subject, as their counters are now."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.billing import quota
from gateway.billing.quota import LimitState
from gateway.images import LimitSubject, Principal
from gateway.store.batch import Batch
from gateway.store.protocol import Store


async def read_limit_states(store: Store, subject: LimitSubject) -> Sequence[LimitState]:
    """A state for each of its limits. Raises `StoreUnavailable`."""
    if not subject.rules:
        return ()
    # Counters go by the limit subjects alone.
    principal = Principal("", "", team=None, subjects=(subject,), expected=())
    batch = Batch(store)
    states = quota.peek(batch, principal)
    await batch.execute()
    return quota.peeked_states(principal, states.value)
