"""The two stores: every test with `store` runs on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.store.protocol import Store
from tests.conftest import OpenStore


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    """An open, empty store."""
    async with open_store() as opened:
        yield opened
