"""Policy: the configuration that may change while the gateway runs.

A request takes one snapshot and keeps it to its end. Today that is the model table; teams and
static keys join it here. A new policy is read as a whole, checked as a whole, and then replaces
the old one; if anything is wrong with it, the old one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from gateway.catalog import Catalog, ChoiceSpec, parse_catalog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for a request."""

    catalog: Catalog

    def values_of(self, parameter: str) -> frozenset[str]:
        """Every value that any row lists for a parameter: what a metric label may say."""
        return frozenset(
            value
            for model in self.catalog.models.values()
            if isinstance(spec := model.parameters.get(parameter), ChoiceSpec)
            for value in spec.values
        )


def parse_policy(models: Mapping[str, Any], *, file: str) -> Policy:
    """The policy in what `file` holds. Raises `CatalogError`, which names file and key."""
    return Policy(parse_catalog(models, file=file))


class PolicySource(Protocol):
    """Where the policy is read from."""

    def read_policy(self) -> Policy:
        """The policy as it stands there now; raises whatever is wrong with it."""

    def policy_state(self) -> object:
        """Something that differs when it was changed; cheap to ask."""


class CurrentPolicy:
    """The policy of this moment, and the one way to another."""

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
        self._state = self._seen = source.policy_state()
        self._policy = source.read_policy()
        on_change(self._policy)

    def __call__(self) -> Policy:
        """A snapshot, for one request."""
        return self._policy

    def reload_if_changed(self) -> None:
        """Reloads once after every change of the source, also after one for the worse.

        Two looks in a row must see the same: what is still being written may be valid half-way.
        """
        state = self._source.policy_state()
        is_at_rest, self._seen = state == self._seen, state
        if is_at_rest and state != self._state:
            self.reload()

    def reload(self) -> None:
        """Takes the new policy wholly or not at all; the log says why not."""
        self._state = self._source.policy_state()
        try:
            policy = self._source.read_policy()
        except Exception as fault:  # noqa: BLE001 - whatever is wrong, the old policy stays
            log.error("policy_reload_failed", reason=str(fault))
            self._on_failure()
            return
        if policy == self._policy:
            log.info("policy_unchanged")
            return
        self._policy = policy
        self._on_change(policy)
        log.info("policy_changed", models=len(policy.catalog.models))
