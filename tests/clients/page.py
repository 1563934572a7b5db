"""The tables of `docs/clients.md` that are made from what the clients got."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clients.calls import CALLS, Outcome
from tests.clients.installation import Entry

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
ERRORS = ("unknown size", "moderation", "budget spent", "wrong key")
IMAGES = tuple(call.name for call in CALLS if not call.name.startswith(ERRORS))

Outcomes = Mapping[tuple[str, str], Outcome]
"""By validation and call."""


def rows(entry: Entry, outcomes: Outcomes, sent: Any) -> dict[str, str]:
    """The client's row of each table, by the table's name."""
    name = f"{entry.name} | {entry.version}"
    images = " | ".join(cell(outcomes, call) for call in IMAGES)
    errors = " | ".join(cell(outcomes, call) for call in ERRORS)
    return {
        "settings": f"| {name} | `…{entry.base_url}` | {entry.needs or 'nothing'} |",
        "images": f"| {name} | {images} |",
        "errors": f"| {name} | {errors} |",
        "requests": f"| {name} | {request(sent)} |",
    }


def cell(outcomes: Outcomes, call: str) -> str:
    strict, lenient = outcomes["strict", call], outcomes["lenient", call]
    if strict.cell == lenient.cell:
        return strict.cell
    return f"{strict.cell}; lenient: {lenient.cell}"


def request(sent: Any) -> str:
    return f"`{json.dumps(sent, ensure_ascii=False)}`" if sent else "–"


def header(table: str) -> list[str]:
    columns = {
        "settings": ["base URL", "needs"],
        "images": list(IMAGES),
        "errors": list(ERRORS),
        "requests": ["sends for gpt-image-1.5"],
    }[table]
    names = ["client", "version", *columns]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def tables_of(text: str) -> dict[str, list[str]]:
    """The lines of each table that is made here, with its header."""
    return {name: body.strip().split("\n") for name, body in _marked(text)}


def write_row(entry: Entry, found: Mapping[str, str], order: Sequence[Entry]) -> None:
    """Replaces the client's rows in the page, and removes those of clients that are gone."""
    text = PAGE.read_text(encoding="utf-8")
    places = {f"{other.name} | {other.version}": place for place, other in enumerate(order)}
    for table, row in found.items():
        by_client = {_client(line): line for line in tables_of(text)[table][2:]}
        by_client[_client(row)] = row
        kept = sorted((name for name in by_client if name in places), key=lambda name: places[name])
        lines = [*header(table), *(by_client[name] for name in kept)]
        text = re.sub(
            rf"(<!-- {table} -->\n).*?(<!-- end -->)",
            lambda match, lines=lines: match[1] + "\n".join(lines) + "\n" + match[2],
            text,
            flags=re.DOTALL,
        )
    PAGE.write_text(text, encoding="utf-8")


def _client(row: str) -> str:
    return " | ".join(cell.strip() for cell in row.split("|")[1:3])


def _marked(text: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"<!-- (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL):
        yield match[1], match[2]
