"""Scopes of money: the limit subjects that a purchase counts against, and its running totals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

from gateway.images import Record
from gateway.store.batch import Batch
from gateway.store.commands import ReadFirstCharges, ReadRunningTotals, RunningTotal
from gateway.store.protocol import Store

EVERYONE: Final = "everyone"
"""The limit subject of all purchases."""


MAX_LABELS: Final = 16
"""Of a key and its team together, that have running totals."""

MAX_SHOWN_VALUES: Final = 500
"""Values of a label that the metrics show."""


class KeyNames(NamedTuple):
    """A key as its running total shows it."""

    key_id: str
    name: str
    team: str | None


def limit_subjects(key_id: str, team: str | None) -> tuple[str, ...]:
    """Those in whose windows a purchase of a key counts."""
    return (f"key:{key_id}", *((f"team:{team}",) if team else ()), EVERYONE)


def running_totals(record: Record) -> tuple[str, ...]:
    """The running totals that a record moves. That of a key outlives a change of its name."""
    if record.labels:
        return total_names(record.key_id, record.team, record.model, record.labels)
    return _names_without_labels(record.key_id, record.team, record.model)


@lru_cache(maxsize=1024)
def _names_without_labels(key_id: str, team: str | None, model: str | None) -> tuple[str, ...]:
    return total_names(key_id, team, model, {})


def total_names(
    key_id: str, team: str | None, model: str | None, labels: Mapping[str, str]
) -> tuple[str, ...]:
    """The running totals of a purchase.

    Of each label, whether or not a metric shows it: so its total is whole from the day it is shown.
    """
    models = () if model is None else (f"model:{model}",)
    of_labels = (label_total(*label) for label in islice(labels.items(), MAX_LABELS))
    return (*limit_subjects(key_id, team), *models, *of_labels)


def label_total(name: str, value: str) -> str:
    """The running total of a label. No label's name has a `=`."""
    return f"label:{name}={value}"


class ShownTotals(NamedTuple):
    """Running totals by scope and name."""

    totals: Mapping[tuple[str, str], RunningTotal]
    first_charges: Mapping[tuple[str, ...], float]
    """When each was first charged, in Unix seconds, if that is known."""


class RunningTotals:
    """Reads the running totals of keys, teams, everyone, models and labels for the metrics."""

    def __init__(self, store: Store, metric_labels: Sequence[str] = ()) -> None:
        self._store = store
        self._metric_labels = metric_labels
        self.keys: Sequence[KeyNames] = ()
        """The keys that `read` shows; of one name, the last one. `api.key_labels` sets and bounds
        them."""
        self.label_sets: Sequence[Mapping[str, str]] = ()
        """The labels of these keys and their teams, set with them."""
        self.are_keys_few = True
        """Whether there are so few keys that they can be listed for each read."""
        self.former_teams: Sequence[str] = ()
        """Teams of revoked keys, which `read` shows too. `api.key_labels` sets and bounds them."""
        self.former_label_sets: Sequence[Mapping[str, str]] = ()
        """The labels of revoked keys and their teams, set with them."""
        self.are_revoked_few = True
        """Whether there are so few revoked keys that they can be listed for each read."""

    async def read(self, models: Iterable[str]) -> ShownTotals:
        """By scope and name, 0 for those that nothing has moved yet. Raises `StoreUnavailable`."""
        keys = self.keys
        teams = dict.fromkeys((*(key.team for key in keys), *self.former_teams))
        # A sum over an expired key and its successor would fall when the expired one is revoked.
        owners = {key.name: key.key_id for key in keys}
        shown = [
            *((f"key:{key_id}", "key", name) for name, key_id in owners.items()),
            *((f"team:{team}", "team", team) for team in teams if team),
            *((f"model:{model}", "model", model) for model in models),
            *self._shown_labels(),
            (EVERYONE, EVERYONE, ""),
        ]
        names = tuple(total for total, *_ in shown)
        batch = Batch(self._store)
        totals, times = batch.add(ReadRunningTotals(names)), batch.add(ReadFirstCharges(names))
        await batch.execute()
        scopes = [(scope, name) for _, scope, name in shown]
        found = dict(zip(scopes, totals.value, strict=True))
        charged_at = zip(scopes, times.value, strict=True)
        first_charges: dict[tuple[str, ...], float] = {
            labels: at for labels, at in charged_at if at is not None
        }
        return ShownTotals(found, first_charges)

    def _shown_labels(self) -> Iterator[tuple[str, str, str]]:
        """The running total of each value of the labels that metrics show; its scope and name."""
        label_sets = (*self.label_sets, *self.former_label_sets)
        for name in self._metric_labels:
            values = dict.fromkeys(labels[name] for labels in label_sets if name in labels)
            for value in islice(values, MAX_SHOWN_VALUES):
                yield label_total(name, value), name, value
