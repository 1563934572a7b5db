"""Policy: the configuration that may change while the gateway runs.

A request takes one snapshot and keeps it to its end. Today that is the model table; teams and
static keys join it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.catalog import Catalog, ChoiceSpec, parse_catalog


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
