"""The accounts at upstream as data: which models each has, and what routing goes by. Pure.

How purchases choose among them is `pool`. `check_accounts` refuses what cannot be routed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.catalog.dialects import BUILT_IN_DIALECTS
from gateway.values import nearest

MAX_REMEMBERED: Final = 1024
"""Models whose accounts are remembered. Clients choose the names of models without a row."""


class UnroutableError(ValueError):
    """Accounts and models do not fit together. Names the key and the fix."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account at upstream."""

    name: str
    group: str
    """Accounts of one group share cached images: it is part of every fingerprint."""
    models: Mapping[str, str] = field(default_factory=dict)
    """The models that are bought here, with their names there; empty: all of its service."""
    priority: int = 1
    """The lowest is asked first."""
    weight: int = 1
    """The share among accounts of one priority; 0: never asked."""
    images_per_minute: int | None = None
    concurrent: int | None = None
    price_factor: Decimal = Decimal(1)
    budget: Mapping[str, int] = field(default_factory=dict)
    """By the name of a limit, such as `usd_per_month`, in micro-dollars."""
    timeout_seconds: float = 600.0
    streams: bool = True
    dialect: str = "openai"
    is_counted: bool = False
    """Whether its purchases count in windows of its own, so that a budget may be set later."""

    @property
    def subject(self) -> str:
        """The limit subject of its budget."""
        return f"upstream:{self.name}"

    def name_of(self, model: str) -> str:
        """The model's name there."""
        return self.models.get(model, model)


class _Having(NamedTuple):
    """The accounts that have a model, and those of them that purchases may ask."""

    declaring: Sequence[Account]
    having: Sequence[Account]


class Accounts:
    """The accounts of a gateway, in the order of the file."""

    def __init__(
        self,
        accounts: Sequence[Account],
        service_of: Callable[[str], str | None] = lambda model: None,
    ) -> None:
        """`service_of` finds the dialect of a model's row."""
        self.all = tuple(accounts)
        self._service_of = service_of
        self._speaks_built_in = any(one.dialect in BUILT_IN_DIALECTS for one in self.all)
        self._found: dict[tuple[str, str | None], _Having] = {}
        """By model and the dialect of its row, which a new policy may change."""

    def __iter__(self) -> Iterator[Account]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def with_services(self, service_of: Callable[[str], str | None]) -> Accounts:
        """The same accounts for the rows of a catalog."""
        return Accounts(self.all, service_of)

    def declaring(self, model: str) -> Sequence[Account]:
        """The accounts that have a model, whatever their weights."""
        return self._find(model).declaring

    def _find(self, model: str) -> _Having:
        # Each purchase asks four times.
        key = model, self._service_of(model)
        if (found := self._found.get(key)) is None:
            if len(self._found) >= MAX_REMEMBERED:
                self._found.clear()
            declaring = tuple(one for one in self.all if self._has(one, *key))
            having = tuple(one for one in declaring if one.weight)
            found = self._found[key] = _Having(declaring, having)
        return found

    def _has(self, account: Account, model: str, service: str | None) -> bool:
        """Whether an account has a model: it lists it, or lists none and speaks its dialect.

        Models without a service, and without a row, are OpenAI's and Azure's, or those of any
        account if none speaks a dialect of these two.
        """
        if account.models:
            return model in account.models
        if service is not None:
            return service == account.dialect
        return account.dialect in BUILT_IN_DIALECTS or not self._speaks_built_in

    def having(self, model: str) -> Sequence[Account]:
        """The accounts that purchases of a model may ask."""
        return self._find(model).having

    def group_of(self, model: str) -> str:
        """The group of the accounts that have a model."""
        found = self.declaring(model)
        return (found[0] if found else self.all[0]).group

    def streams(self, model: str) -> bool:
        """Whether any account that has a model streams."""
        return any(account.streams for account in self.having(model) or self.all)

    @property
    def timeout_seconds(self) -> float:
        """How long a purchase may take at any account."""
        return max(account.timeout_seconds for account in self.all)


def check_accounts(
    accounts: Accounts, models: Collection[str], *, passes_unknown: bool = False
) -> None:
    """Checks accounts against the rows of `models.yaml`.

    With `passes_unknown`, accounts may have models without a row. Raises `UnroutableError`.
    """
    for account in accounts:
        for model in account.models:
            if model not in models and not passes_unknown:
                near = nearest(model, models)
                raise UnroutableError(
                    f"models of the upstream '{account.name}': '{model}' is no model of "
                    f"models.yaml. Did you mean '{near}'? Otherwise add a row for it to "
                    "models.yaml, or set unknown_models: passthrough there."
                )
    named = {model for account in accounts for model in account.models}
    for model in sorted({*models, *named}):
        having = accounts.declaring(model)
        _check_groups(model, having)
        if having and not any(account.weight for account in having):
            names = _names(having)
            raise UnroutableError(
                f"weight: every upstream that has the model '{model}' has the weight 0 ({names}), "
                "so none would be asked. Give one of them a weight above 0."
            )


def _check_groups(model: str, having: Sequence[Account]) -> None:
    for account in having[1:]:
        if account.group != having[0].group:
            raise UnroutableError(
                f"group: the model '{model}' would be bought from two groups, "
                f"'{having[0].group}' ({having[0].name}) and '{account.group}' ({account.name}), "
                "but cached images are shared within one group only. Give these upstreams the "
                "same group if their images count as the same, or take the model out of the "
                "models of one of them."
            )


def different_names(accounts: Accounts, models: Collection[str]) -> Mapping[str, Sequence[str]]:
    """The models that have several names at upstream, with these names.

    Their images count as the same; it is the operator's word that they are.
    """
    found = {}
    named = {model for account in accounts for model in account.models}
    for model in sorted({*models, *named}):
        names = list(dict.fromkeys(account.name_of(model) for account in accounts.having(model)))
        if len(names) > 1:
            found[model] = names
    return found


def _names(accounts: Sequence[Account]) -> str:
    return ", ".join(account.name for account in accounts)
