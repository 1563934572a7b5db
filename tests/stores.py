"""On which of the two stores a test runs."""

from __future__ import annotations

import pytest


def usually_on(store: str, fixture: str = "store_url") -> pytest.MarkDecorator:
    """Runs a long test on one store, `sqlite` or `redis`; `make test-long` runs it on the other.

    For a test whose subject is not the store. `fixture` is the one that has the store as parameter.
    """
    other = {"sqlite": "redis", "redis": "sqlite"}[store]
    stores = [store, pytest.param(other, marks=pytest.mark.long)]
    return pytest.mark.parametrize(fixture, stores, indirect=True)
