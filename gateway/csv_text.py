"""CSV that a spreadsheet opens as data: no text of a client runs as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


def quote_formula(text: str) -> str:
    """The text, with `'` before it if a spreadsheet would take it for a formula.

    A negative number stays a number.
    """
    is_formula = text.startswith(_FORMULA) and _NUMBER.fullmatch(text) is None
    return f"'{text}" if is_formula else text


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines of CSV (RFC 4180)."""
    text = io.StringIO()
    csv.writer(text).writerows([quote_formula(cell) for cell in row] for row in rows)
    return text.getvalue()
