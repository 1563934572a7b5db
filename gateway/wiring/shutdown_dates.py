"""When the models of this gateway are shut down, as its accounts say.

An account may have dates of its own: Azure often keeps a model for longer. A model is shut down
once all accounts that have it say so.
"""

from __future__ import annotations

from datetime import date

from gateway.catalog import Catalog, CatalogError, Model
from gateway.configuration.settings import Settings, UpstreamSettings
from gateway.upstream.accounts import Accounts
from gateway.values import nearest


def with_account_dates(catalog: Catalog, settings: Settings, accounts: Accounts) -> Catalog:
    """The catalog with the latest date of the accounts that have a model; None: it has none.

    Raises `CatalogError` for an account's date of a model that has no row.
    """
    if not any(account.shutdown for account in settings.accounts):
        return catalog
    for account in settings.accounts:
        _check_names(account, catalog)
    return catalog.with_shutdowns(
        {name: _date_of(model, settings, accounts) for name, model in catalog.models.items()}
    )


def _date_of(model: Model, settings: Settings, accounts: Accounts) -> date | None:
    asked = {account.name for account in accounts.having(model.id)}
    dates = [
        account.shutdown.get(model.id, model.shutdown)
        for account in settings.accounts
        if account.name in asked
    ]
    latest = [day for day in dates if day is not None]
    if len(latest) < len(dates):
        return None  # an account that has announced no date goes on making it
    return max(latest, default=model.shutdown)


def _check_names(account: UpstreamSettings, catalog: Catalog) -> None:
    for name in account.shutdown:
        if name not in catalog.models:
            raise CatalogError(
                f"gateway.yaml: shutdown of the upstream '{account.name}': models.yaml has no "
                f"model '{name}'. Did you mean '{nearest(name, catalog.models)}'?"
            )
