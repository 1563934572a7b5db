"""The policy: the configuration that may change while the gateway runs.

A request takes one snapshot and keeps it to its end. It has the model table, and what `access.yaml`
declares. A new policy is read as a whole, checked as a whole, and then replaces the old one. If
anything is wrong with it, the old one stays. Where it is read from is `configuration.files`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

import structlog

from gateway.access.access_file import NOTHING, AccessFile, parse_access
from gateway.catalog import Catalog, ChoiceSpec, parse_catalog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """A snapshot of the policy."""

    catalog: Catalog
    access: AccessFile = NOTHING

    @property
    def retiring_models(self) -> Mapping[str, date]:
        """The models that upstream will refuse, with the day from which on."""
        models = self.catalog.models
        return {name: row.shutdown for name, row in models.items() if row.shutdown is not None}

    def values_of(self, parameter: str) -> frozenset[str]:
        """Every value that any model has for a parameter: the labels of its metrics."""
        return frozenset(
            value
            for model in self.catalog.models.values()
            if isinstance(spec := model.parameters.get(parameter), ChoiceSpec)
            for value in spec.values
        )


def parse_policy(
    models: Mapping[str, Any],
    access: Mapping[str, Any] | None = None,
    *,
    file: str,
    access_file: str = "",
) -> Policy:
    """The policy with `models`, read from `file`, and `access`, read from `access_file`.

    Raises `CatalogError` and `AccessFileError`, which name the file and the key.
    """
    catalog = parse_catalog(models, file=file)
    declared = parse_access(
        access or {}, file=access_file, models=catalog.names, has_others=catalog.may_have_others
    )
    return Policy(catalog, declared)


class PolicySource(Protocol):
    """Where the policy is read from."""

    def read_policy(self) -> Policy:
        """The policy as it is now. Raises the source's own errors."""

    def policy_state(self) -> object:
        """A value that differs after every change of the source; cheap to get."""


class CurrentPolicy:
    """The current policy, and its reloading."""

    def __init__(
        self,
        source: PolicySource,
        *,
        on_change: Callable[[Policy], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._source = source
        self._on_change = on_change
        self._on_failure = on_failure
        self.fault: str | None = None
        """What is wrong with the source, so that an older policy is still used."""
        self._loaded_state = self._seen_state = source.policy_state()
        self._policy = source.read_policy()
        on_change(self._policy)

    def __call__(self) -> Policy:
        """A snapshot, for one request."""
        return self._policy

    @property
    def is_faulty(self) -> bool:
        return self.fault is not None

    def reload_if_changed(self) -> None:
        """Reloads once after every change of the source, valid or not."""
        state = self._source.policy_state()
        # Half of a file may be valid, so the state must be the same twice in a row.
        is_settled, self._seen_state = state == self._seen_state, state
        if is_settled and state != self._loaded_state:
            self.reload()

    def reload(self) -> None:
        """Adopts the source's policy if all of it is valid; otherwise logs why not."""
        # Before reading: a change during the read is then noticed at the next check. A file with a
        # fault is tried once, not at every check.
        self._loaded_state = self._source.policy_state()
        try:
            policy = self._source.read_policy()
        except Exception as error:  # noqa: BLE001 - whatever is wrong, the old policy stays
            log.error("policy_reload_failed", reason=str(error))
            self.fault = str(error)
            self._on_failure()
            return
        self.fault = None
        if policy == self._policy:
            log.info("policy_unchanged")
            return
        self._policy = policy
        self._on_change(policy)
        log.info(
            "policy_changed",
            models=len(policy.catalog.models),
            teams=len(policy.access.teams),
            keys=len(policy.access.keys),
            webhooks=len(policy.access.webhooks),
        )
