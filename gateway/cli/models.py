"""The models that a command names."""

from __future__ import annotations

from collections.abc import Iterable

import click

from gateway.configuration.files import Configuration
from gateway.values import nearest


def check_models(configuration: Configuration, models: Iterable[str]) -> None:
    """Ends the command with a message for a model that cannot exist."""
    catalog = configuration.read_policy().catalog
    known = catalog.names
    for model in models:
        if not catalog.may_exist(model):
            raise click.ClickException(
                f"Unknown model '{model}'. Did you mean '{nearest(model, known)}'? Known models: "
                f"{', '.join(sorted(known))}."
            )
