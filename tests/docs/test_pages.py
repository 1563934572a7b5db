"""All pages of `docs/reference`: every link and every citation has a target."""

import re
from pathlib import Path

from tests.docs.pages import REFERENCE, ROOT, anchor, headings, read_page
from tests.rows import each_row

PAGES = sorted(path.name for path in REFERENCE.glob("*.md"))
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
CITATION = re.compile(r"docs/reference/([\w-]+\.md)(?:#([\w-]+))?")


def anchors_of(page: str) -> list[str]:
    return [anchor(heading) for heading in headings(read_page(page))]


@each_row("page", PAGES)
def test_every_link_of_a_page_has_a_target(page: str):
    for link in LINK.findall(read_page(page)):
        if link.startswith("https://"):
            continue
        target, _, fragment = link.partition("#")
        path = (REFERENCE / target).resolve() if target else REFERENCE / page
        assert path.exists(), link
        if fragment:
            assert fragment in anchors_of(path.name), link


@each_row("page", PAGES)
def test_every_anchor_of_a_page_is_unique(page: str):
    assert len(set(anchors_of(page))) == len(anchors_of(page))


def test_the_index_names_every_page():
    assert {*LINK.findall(read_page("README.md"))} == {*PAGES} - {"README.md"}


def citing_files() -> list[Path]:
    python = [path for folder in ("gateway", "tests") for path in (ROOT / folder).rglob("*.py")]
    return [*python, *(ROOT / "config").glob("*.yaml")]


def test_the_code_cites_pages_and_headings_that_exist():
    faults = [
        f"{path.relative_to(ROOT)}: {page}#{fragment}"
        for path in citing_files()
        for page, fragment in CITATION.findall(path.read_text(encoding="utf-8"))
        if page not in PAGES or (fragment and fragment not in anchors_of(page))
    ]
    assert faults == []
