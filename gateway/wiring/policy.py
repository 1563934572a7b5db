"""The policy as the accounts of this gateway can serve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.access.policy import Policy, PolicySource
from gateway.catalog import Catalog
from gateway.configuration.expand import ConfigError
from gateway.configuration.settings import Settings
from gateway.upstream.accounts import UnroutableError, check_accounts
from gateway.wiring.accounts import create_accounts
from gateway.wiring.shutdown_dates import with_account_dates


def served_policy(policy: Policy, settings: Settings) -> Policy:
    """The policy without the models that no account has; for clients they do not exist.

    With the shutdown dates of the accounts. Raises `CatalogError` for an account whose dialect is
    unknown, or that has a date for a model without a row, and `ConfigError` for accounts and models
    that do not fit together.
    """
    spoken = {account.dialect for account in settings.accounts}
    policy.catalog.check_dialects(sorted(spoken))
    accounts = create_accounts(settings).with_services(lambda model: service_of(policy, model))
    policy = replace(policy, catalog=with_account_dates(policy.catalog, settings, accounts))
    try:
        check_accounts(
            accounts,
            policy.catalog.models,
            passes_unknown=policy.catalog.unknown_models == "passthrough",
        )
    except UnroutableError as fault:
        raise ConfigError(f"gateway.yaml: {fault}") from None
    served = {name: row for name, row in policy.catalog.models.items() if accounts.having(name)}
    if len(served) == len(policy.catalog.models):
        return policy
    restricted = replace(policy, catalog=policy.catalog.with_models(served))
    _check_references(policy, restricted.catalog)
    return restricted


def service_of(policy: Policy, model: str) -> str | None:
    """The dialect of a model's row; None for OpenAI's and Azure's."""
    row = policy.catalog.models.get(model)
    return None if row is None else row.service


def _check_references(policy: Policy, served: Catalog) -> None:
    """Refuses an alias and a declared key's model that no account has."""
    catalog = policy.catalog
    references: dict[str, Sequence[str]] = {
        f"models.yaml: aliases.{name}": [name] for name in catalog.linked_aliases
    }
    for kind, declared in (("keys", policy.access.keys), ("teams", policy.access.teams)):
        for name, record in declared.items():
            references[f"access.yaml: models of {kind}.{name}"] = record.models or ()
    for where, names in references.items():
        for name in names:
            if name in catalog.fronts and name not in served.fronts:
                model = catalog.model_of(name).id
                raise ConfigError(
                    f"{where}: no upstream has the model '{model}'. Use one of "
                    f"{', '.join(served.fronts)}, or add '{model}' to the models of an upstream."
                )


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
