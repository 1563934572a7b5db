"""Scopes of money: the limit subjects that a purchase counts against, and its running totals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import ReadRunningTotals, RunningTotal
from gateway.store.protocol import Store

EVERYONE: Final = "everyone"
"""The limit subject of all purchases."""


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
    subjects = limit_subjects(record.key_id, record.team)
    return subjects if record.model is None else (*subjects, f"model:{record.model}")


class RunningTotals:
    """Reads the running totals of keys, teams, everyone and models for the metrics."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.keys: Sequence[KeyNames] = ()
        """The keys that `read` shows. `api.key_labels` sets and bounds them."""
        self.are_keys_few = True
        """Whether there are so few keys that they can be listed for each read."""

    async def read(self, models: Iterable[str]) -> Mapping[tuple[str, str], RunningTotal]:
        """By scope and name, 0 for those that nothing has moved yet. Raises `StoreUnavailable`."""
        keys = self.keys
        shown = [
            *((f"key:{key.key_id}", "key", key.name) for key in keys),
            *((f"team:{team}", "team", team) for team in {key.team: None for key in keys} if team),
            *((f"model:{model}", "model", model) for model in models),
            (EVERYONE, EVERYONE, ""),
        ]
        totals = await execute(self._store, ReadRunningTotals(tuple(total for total, *_ in shown)))
        found: dict[tuple[str, str], RunningTotal] = defaultdict(RunningTotal)
        for (_, scope, name), total in zip(shown, totals, strict=True):
            # An expired key and its successor may have one name.
            pairs = zip(found[scope, name], total, strict=True)
            found[scope, name] = RunningTotal(*(before + more for before, more in pairs))
        return found
