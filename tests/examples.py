"""How many examples the tests try: all of them take minutes, so `make test` tries a part."""

from __future__ import annotations

import os
from typing import Final

ALL_EXAMPLES: Final = "ALL_EXAMPLES" in os.environ
"""`make test-long` sets it."""


def examples(count: int) -> int:
    """`count`, or a third of it outside `make test-long`."""
    return count if ALL_EXAMPLES else count // 3
