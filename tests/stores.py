"""On which of the two stores a test runs."""

from __future__ import annotations

import pytest


def usually_on(store: str, fixture: str = "store_url") -> pytest.MarkDecorator:
    """Runs a slow test on `store` in `make test`, and on the other one in `make test-long`.

    For a test whose subject is not the store. `store` is `sqlite` or `redis`, and `fixture` the
    fixture whose parameter it is.
    """
    other = {"sqlite": "redis", "redis": "sqlite"}[store]
    stores = [store, pytest.param(other, marks=pytest.mark.long)]
    return pytest.mark.parametrize(fixture, stores, indirect=True)
