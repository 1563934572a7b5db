"""Fixtures of the tests of `upstream`."""

import pytest

from gateway.upstream import connection


@pytest.fixture(autouse=True)
def connections_without_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is reused at once, so that a test decides what arrives before."""
    monkeypatch.setattr(connection, "REST_SECONDS", 0.0)
