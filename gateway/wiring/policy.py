"""The policy as the accounts of this gateway can serve it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.access.policy import Policy, PolicySource
from gateway.configuration.settings import Settings
from gateway.wiring.shutdown_dates import with_account_dates


def served_policy(policy: Policy, settings: Settings) -> Policy:
    """The policy without the models of services that no account speaks.

    With the shutdown dates of the accounts. Raises `CatalogError` for an account whose dialect is
    unknown, or that has a date for a model without a row.
    """
    spoken = {account.dialect for account in settings.accounts}
    policy.catalog.check_dialects(sorted(spoken))
    catalog = with_account_dates(policy.catalog, settings)
    return replace(policy, catalog=catalog.of_services(spoken))


@dataclass(frozen=True, slots=True)
class ServedPolicySource:
    """A source of such policies."""

    source: PolicySource
    settings: Settings

    def read_policy(self) -> Policy:
        """Raises as `source`, and as `served_policy`."""
        return served_policy(self.source.read_policy(), self.settings)

    def policy_state(self) -> object:
        """As `source`."""
        return self.source.policy_state()
