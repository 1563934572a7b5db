"""The keys that have labels of their own in the metrics."""

from __future__ import annotations

from gateway.api.services import Services
from gateway.billing.limit_gauges import distinct
from gateway.billing.running_totals import KeyNames
from gateway.metrics import MAX_KEYS


async def label_keys(services: Services, *, with_revoked: bool = True) -> None:
    """Tells the metrics which keys may have labels of their own: the oldest ones.

    Listing the keys also makes them known to this worker. One that knew none, as after a restart,
    would refuse them all while their clients' address is over its failed attempts.
    """
    keys = await services.keys.learn(MAX_KEYS)
    services.metrics.use_keys(key.name for key in keys)
    now = services.clock()
    # An expired key has its name until another takes it: the last one of a name has it.
    by_right = sorted(keys, key=lambda key: key.expires_at is None or key.expires_at > now)
    services.running_totals.keys = [KeyNames(key.key_id, key.name, key.team) for key in by_right]
    services.running_totals.are_keys_few = len(keys) < MAX_KEYS
    everyone, found = await services.keys.resolve(keys)
    services.running_totals.label_sets = [key.labels for key in found]
    # Everyone also without a key: what was spent this month stays spent.
    of_keys = (subject for key in found for subject in key.subjects)
    services.limit_gauges.subjects = distinct((everyone, *of_keys))
    if with_revoked:
        await _keep_those_of_revoked_keys(services)


async def _keep_those_of_revoked_keys(services: Services) -> None:
    """The money of a team or a label stays theirs when their last key is revoked."""
    keys = await services.keys.newest_revoked(MAX_KEYS)
    _, found = await services.keys.resolve(keys)
    services.running_totals.are_revoked_few = len(keys) < MAX_KEYS
    services.running_totals.former_teams = [key.team for key in keys if key.team]
    services.running_totals.former_label_sets = [key.labels for key in found]
    teams = (subject for key in found for subject in key.subjects if subject.kind == "team")
    services.limit_gauges.former_teams = distinct(teams)
