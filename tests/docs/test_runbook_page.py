"""`docs/runbook.md` has a section for each alert; its links and commands exist."""

from __future__ import annotations

import re

from tests.docs.pages import REFERENCE, ROOT, anchor, headings
from tests.prometheus_rules import ALERTS

PAGE = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def sections() -> list[str]:
    return [heading for heading in headings(PAGE) if heading.startswith("ImageGateway")]


def test_every_alert_has_a_section_and_every_section_an_alert():
    assert sorted(sections()) == sorted(ALERTS)


def test_a_section_says_how_to_look_or_what_to_do():
    for text in PAGE.split("\n### ")[1:]:
        assert re.search(r"\*\*(Look|Do|Look and do):\*\*", text), text.splitlines()[0]


def test_every_link_has_a_target():
    for link in LINK.findall(PAGE):
        target, _, fragment = link.partition("#")
        path = (ROOT / "docs" / target).resolve() if target else ROOT / "docs" / "runbook.md"
        assert path.exists(), link
        if fragment:
            assert fragment in map(anchor, headings(path.read_text(encoding="utf-8"))), link


def test_settings_and_events_that_it_names_exist():
    settings = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    sources = "".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "gateway").rglob("*.py"))
    )
    for name in re.findall(r"`((?:server|billing|cache|upstream|workers)\.[a-z_.]+)`", PAGE):
        assert f"`{name}`" in settings, name
    for event in re.findall(r"the log[^.]*?`([a-z]+_[a-z_]+)`", PAGE):
        assert f'"{event}"' in sources or event == "client_address", event
