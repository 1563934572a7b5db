"""`docs/security.md`: every test that it names exists, and every setting."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, read_page

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_promise_names_a_test() -> None:
    tables = re.findall(r"^\| promise .*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    promises = [row for table in tables for row in table.splitlines()]
    assert (len(tables), len(promises) > 20) == (5, True)
    assert [row for row in promises if "`tests/" not in row] == []


def test_every_named_setting_exists() -> None:
    settings = read_page("settings.md")
    named = set(re.findall(r"`((?:server|cache|rehost|store)\.\w+)", PAGE))
    assert len(named) > 8
    assert [name for name in sorted(named) if f"`{name}" not in settings] == []
