"""CSV that spreadsheets open as data."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.csv_text import csv_lines, quote_formula


@given(st.lists(st.lists(st.text(), min_size=1), min_size=1))
def test_no_cell_begins_a_formula_and_no_other_cell_is_changed(rows: list[list[str]]) -> None:
    found = list(csv.reader(io.StringIO(csv_lines(rows), newline="")))
    for line, row in zip(found, rows, strict=True):
        for cell, text in zip(line, row, strict=True):
            assert cell in (text, f"'{text}")
            if cell and cell[0] in "=+-@\t\r\n":
                assert float(cell) < 0


@pytest.mark.parametrize("number", ["-1", "-0.000001", "12", "0.5"])
def test_a_negative_number_stays_a_number(number: str) -> None:
    assert quote_formula(number) == number


@pytest.mark.parametrize("text", ["-", "--1", "-1+2", "-1\n", "+1", "=1", "@A1", "-١", "-1,5"])
def test_what_only_looks_like_a_number_is_quoted(text: str) -> None:
    assert quote_formula(text) == f"'{text}"
