"""On which stores a test runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pytest

TOPOLOGIES: Final = [
    pytest.param("sentinel", marks=pytest.mark.long),
    pytest.param("cluster", marks=pytest.mark.long),
]
"""Further parameters of a fixture that opens a store: other set-ups of Redis, in long tests."""


def usually_on(
    store: str, fixture: str = "store_url", *, more: Sequence[object] = ()
) -> pytest.MarkDecorator:
    """Runs a slow test on `store` in `make test`, and on the other one in `make test-long`.

    For a test whose subject is not the store. `store` is `sqlite` or `redis`, `fixture` the
    fixture whose parameter it is, and `more` further parameters, such as `TOPOLOGIES`.
    """
    return pytest.mark.parametrize(fixture, [*usual_first(store), *more], indirect=True)


def usual_store(store: str, *, more: Sequence[object] = ()) -> Callable[..., str | None]:
    """The fixture `store_url` of a module whose subjects are decisions above the store.

    As `usually_on` for each of its tests. That both stores do the same is tested in `tests/store`.
    """

    @pytest.fixture(name="store_url", params=[*usual_first(store), *more])
    def store_url(request: pytest.FixtureRequest) -> str | None:
        if request.param == "sqlite":
            return None
        url: str = request.getfixturevalue(f"{request.param}_url")
        return url

    return store_url


def usual_first(store: str) -> list[object]:
    """The parameters of a fixture that opens a store: `store`, and in long tests the other one."""
    other = {"sqlite": "redis", "redis": "sqlite"}[store]
    return [store, pytest.param(other, marks=pytest.mark.long)]
