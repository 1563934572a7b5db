"""`docs/reference/keys.md` agrees with the code."""

from __future__ import annotations

from gateway.access.key_records import KeySpec
from gateway.access.labels import MAX_LABEL_CHARACTERS, MAX_LABELS
from gateway.proxy.interpret import MAX_USER
from tests.docs.pages import code, read_page, rows_below

PAGE = read_page("keys.md")


def test_the_page_lists_every_field_in_order():
    assert [code(row["field"]) for row in rows_below(PAGE, "Fields")] == list(KeySpec.model_fields)


def test_the_page_names_the_bounds_of_labels_and_users():
    assert f"`labels` are up to {MAX_LABELS} pairs" in PAGE
    assert f"a value has 1 to {MAX_LABEL_CHARACTERS} printable" in PAGE
    assert f"at most {MAX_USER} characters" in PAGE
