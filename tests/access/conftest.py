"""A clock that tests of keys and of the audit set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

NOW = 1_800_000_000.0


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
