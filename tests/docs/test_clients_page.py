"""`docs/clients.md`: every client of `tests/clients/clients.toml` has its rows.

`make test-clients` checks what they say.
"""

import pytest

from tests.clients.calls import CALLS
from tests.clients.installation import RUNNERS, Entry, read_entries
from tests.clients.page import PAGE, header, tables_of
from tests.rows import each_row

ENTRIES = read_entries()
TABLES = tables_of(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", ["settings", "images", "errors", "requests"])
def test_every_client_has_a_row_in_order(table: str):
    first, border, *rows = TABLES[table]
    assert [first, border] == header(table)
    clients = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
    assert clients == [(entry.name, entry.version) for entry in ENTRIES]


@each_row("entry", ENTRIES, ids=lambda entry: entry.id)
def test_a_client_has_pinned_packages_a_runner_and_known_calls(entry: Entry):
    assert (RUNNERS / entry.runner).is_file()
    assert all(version in " ".join(entry.packages) for version in entry.version.split(", "))
    known = {call.name for call in CALLS} | {f"any {call.model}" for call in CALLS if call.model}
    prefixes = ("strict: ", "lenient: ")
    names = {name.removeprefix(prefixes[0]).removeprefix(prefixes[1]) for name in entry.gets}
    assert names <= known
