"""The names of blobs: the SHA-256 of their bytes, in lower-case hex."""

from __future__ import annotations

import re
from typing import Final

DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def check_digest(digest: str) -> None:
    """Raises `ValueError` for anything else, which could name another key, file or object."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"This is no SHA-256 in lower-case hex: {digest!r}.")
