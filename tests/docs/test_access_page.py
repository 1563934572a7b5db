"""`docs/reference/access.md` agrees with the code."""

from __future__ import annotations

from gateway.access.access_file import (
    _SECTIONS,
    _WEBHOOK_FIELDS,
    MAX_SECRET,
    MIN_SECRET,
)
from gateway.access.limit_values import _FIELDS, DEFAULT_WARN_AT, MAX_WARN_AT, MAX_WARNINGS
from gateway.access.raises import MAX_RAISES
from gateway.access.subject_records import TeamSpec
from tests.docs.pages import code, read_page, rows_below

PAGE = read_page("access.md")


def test_the_page_lists_every_field_of_a_limit_and_of_a_team():
    assert [code(row["field"]) for row in rows_below(PAGE, "A limit")] == list(_FIELDS)
    assert [code(row["field"]) for row in rows_below(PAGE, "Teams")] == list(TeamSpec.model_fields)


def test_the_page_lists_every_section_of_the_file():
    rows = rows_below(PAGE, "access.yaml")
    assert [code(row["section"]) for row in rows] == list(_SECTIONS)
    webhooks = rows[-1]["content"]
    assert all(f"`{field}`" in webhooks for field in _WEBHOOK_FIELDS)


def test_the_page_names_the_bounds():
    assert f"up to {MAX_WARNINGS} parts of the maximum, above 0 and up to {MAX_WARN_AT}" in PAGE
    assert f"`{list(DEFAULT_WARN_AT)}`" in PAGE
    assert f"at most {MAX_RAISES} of one scope" in PAGE
    assert f"A secret has {MIN_SECRET} to {MAX_SECRET} printable ASCII" in PAGE
