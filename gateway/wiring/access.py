"""Keys, teams and their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.access.access_file import AccessFile
from gateway.access.keys import Keys
from gateway.access.limit_changes import LimitChanges
from gateway.access.subjects import Subjects
from gateway.access.teams import Teams
from gateway.configuration.settings import Settings
from gateway.store.protocol import Store
from gateway.wiring.stores import create_calendar


@dataclass(frozen=True, slots=True)
class Access:
    """The components of `access/` that workers and commands share."""

    keys: Keys
    subjects: Subjects
    teams: Teams
    limit_changes: LimitChanges


def wire_access(settings: Settings, store: Store, declared: Callable[[], AccessFile]) -> Access:
    """Constructs the components of `Access`, with what `access.yaml` declares. No I/O."""
    calendar = create_calendar(settings)
    subjects = Subjects(store, declared=declared, calendar=calendar)
    keys = Keys(store, subjects=subjects)
    teams = Teams(store, subjects, keys)
    limit_changes = LimitChanges(store, subjects, keys=keys, teams=teams)
    return Access(keys, subjects, teams, limit_changes)
