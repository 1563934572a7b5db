"""Parses the pages of `docs/reference`: headings, tables, code spans."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"

_HEADING = re.compile(r"#{1,6} +(.+?) *")
_CELL_BORDER = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"``(.+?)``|`([^`]+)`")

Row = dict[str, str]


def read_page(name: str) -> str:
    """The text of a page, as `settings.md`."""
    return (REFERENCE / name).read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    """All headings in order; lines in code blocks are none."""
    matches = map(_HEADING.fullmatch, _lines_outside_code(text))
    return [match[1] for match in matches if match]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def tables(text: str) -> Iterator[tuple[str, list[Row]]]:
    """Every table with the heading above it; a row is a mapping from column to cell."""
    heading, lines = "", []
    for line in [*_lines_outside_code(text), ""]:
        if line.startswith("|"):
            lines.append(line)
            continue
        if lines:
            yield heading, _rows(lines)
            lines = []
        if match := _HEADING.fullmatch(line):
            heading = match[1]


def rows_with(text: str, *columns: str) -> list[Row]:
    """The rows of all tables that have exactly these columns."""
    return [row for _, rows in tables(text) for row in rows if tuple(row) == columns]


def rows_below(text: str, heading: str) -> list[Row]:
    """The rows of the tables below a heading."""
    found = [rows for above, rows in tables(text) if above == heading]
    assert found, f"no table below '{heading}'"
    return [row for rows in found for row in rows]


def codes(cell: str) -> list[str]:
    """The code spans of a cell."""
    return [double or single for double, single in _CODE.findall(cell)]


def code(cell: str) -> str:
    """The one code span of a cell."""
    (span,) = codes(cell)
    return span


@cache
def sources(folder: str) -> dict[Path, ast.Module]:
    """The syntax tree of every Python file below a folder of the repository."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, folder
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def text_of(node: ast.AST) -> str | None:
    """A string in the code, with `*` for each value of an f-string; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values
    )


def _lines_outside_code(text: str) -> Iterator[str]:
    is_code = False
    for line in text.splitlines():
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield line


def _rows(lines: Sequence[str]) -> list[Row]:
    header, border, *rest = map(_cells, lines)
    assert all(re.fullmatch(":?-+:?", cell) for cell in border), lines[1]
    for cells in rest:
        assert len(cells) == len(header), cells
    return [dict(zip(header, cells, strict=True)) for cells in rest]


def _cells(line: str) -> list[str]:
    cells = _CELL_BORDER.split(line.strip().removeprefix("|").removesuffix("|"))
    return [cell.strip().replace("\\|", "|") for cell in cells]
