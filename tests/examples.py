"""How many examples the tests try: all of them take minutes, so `make test` tries a part."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

ALL_EXAMPLES: Final = "ALL_EXAMPLES" in os.environ
"""`make test-long` sets it."""


T = TypeVar("T")


def examples(count: int) -> int:
    """`count`, or a third of it outside `make test-long`."""
    return count if ALL_EXAMPLES else count // 3


def some_rows(rows: Iterable[T]) -> Sequence[T]:
    """All rows, or every third outside `make test-long`: of a table that a faster test has too."""
    return list(rows)[:: 1 if ALL_EXAMPLES else 3]
