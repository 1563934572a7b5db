"""The dashboard's static files: native modules without a build step, small, and only from here.

Nothing runs here. `tests/browser` opens them in a browser.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.api.dashboard.page import STATIC, VIEWS
from tests.rows import each_row

MAX_BYTES = 200 * 1024
VENDOR = STATIC / "vendor"
PLOT = VENDOR / "uPlot.iife.min.js"
ASSETS = "/dashboard/assets/"

UNMODIFIED = {
    # lit-html 3.3.3, BSD-3-Clause
    "lit-html.js": "b878e7f95dec8a9b6e9b217faca6b6a11bad82ebc44c0caa77419ed83edd81f2",
    "LICENSE-lit-html.txt": "2b66f9390afde29edfe4314daff93f01fb182e1178053e228120178987e5db75",
    # uPlot 1.6.32, MIT
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "LICENSE-uPlot.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""The files of the packages as they were published, by SHA-256."""

NAMESPACES = {"http://www.w3.org/2000/svg"}
"""An address that is a name: nothing is loaded from it."""

_IMPORT = re.compile(r"""\s*import\b[^;'"]*['"]([^'"]+)['"];""")
_LAZY = re.compile(r"\bimport\('([^']+)'\)")
_STYLESHEET = re.compile(r"\bstylesheet\('([^']+)'\)")
_HOST = re.compile(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s'"`)]*""")
_LINKED = re.compile(r"""(?:src|href)="([^"]+)\"""")
_COMMENT = re.compile(r"/\*.*?\*/|^\s*//.*?$", re.DOTALL | re.MULTILINE)


def files(pattern: str) -> Iterator[Path]:
    return (path for path in sorted(STATIC.rglob(pattern)) if path.is_file())


def own(pattern: str) -> Iterator[Path]:
    return (path for path in files(pattern) if VENDOR not in path.parents)


def imports(module: Path) -> Iterator[Path]:
    """The modules that a module imports: the statements at its start."""
    text, at = _COMMENT.sub("", module.read_text(encoding="utf-8")), 0
    while found := _IMPORT.match(text, at):
        at, name = found.end(), found[1]
        assert name.startswith(("./", "../")), f"{module.name} imports {name}"
        yield (module.parent / name).resolve()


def lazy_imports() -> set[Path]:
    """The modules that are loaded when they are needed, such as those of dialogs."""
    return {
        (module.parent / name).resolve()
        for module in own("*.js")
        for name in _LAZY.findall(_COMMENT.sub("", module.read_text(encoding="utf-8")))
    }


def reachable(modules: set[Path]) -> set[Path]:
    """These modules, and all that they import."""
    found: set[Path] = set()
    todo = set(modules)
    while todo:
        module = todo.pop()
        assert module.is_file(), f"{module} does not exist"
        found.add(module)
        todo |= set(imports(module)) - found
    return found


def styles(modules: Iterable[Path]) -> set[Path]:
    """The stylesheets that modules load, with `ui/styles.js`."""
    texts = (path.read_text(encoding="utf-8") for path in modules if path.suffix == ".js")
    names = {name for text in texts for name in _STYLESHEET.findall(_COMMENT.sub("", text))}
    return {STATIC / f"{name}.css" for name in names}


def module_of(view: str) -> Path:
    return STATIC / "views" / f"{view}.js"


def linked() -> set[Path]:
    """The files that `index.html` names."""
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    return {STATIC / name.removeprefix(ASSETS) for name in _LINKED.findall(text)}


@each_row(
    ("view", "page"),
    [*((view, None) for view in VIEWS), ("keys", "key_page"), ("teams", "team_page")],
)
def test_a_view_loads_at_most_200_kib(view: str, page: str | None) -> None:
    """All that a browser gets to show it, before compression: the frame, the view and uPlot.

    `page` is that of one key or team, which the view loads when one is opened.
    """
    modules = {STATIC / "app.js", module_of(view)}
    if page is not None:
        modules.add(STATIC / "admin" / f"{page}.js")
    loaded = linked() | {STATIC / "index.html"} | reachable(modules)
    loaded |= styles(loaded)
    if STATIC / "ui" / "plot.js" in loaded:
        loaded.add(PLOT)
    sizes = {path.relative_to(STATIC).as_posix(): path.stat().st_size for path in loaded}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:12]
    assert sum(sizes.values()) <= MAX_BYTES, f"{sum(sizes.values())} bytes; largest: {largest}"


def test_every_import_resolves_and_every_module_is_reachable() -> None:
    scripts = {path for path in linked() if path.suffix == ".js"}
    views = {module_of(view) for view in VIEWS}
    # `ui/plot.js` loads uPlot, which is a classic script.
    assert reachable(scripts | views | lazy_imports()) | {PLOT} == set(files("*.js"))


def test_what_the_page_links_exists() -> None:
    assert {path for path in linked() if not path.is_file()} == set()
    sheets = {path for path in linked() if path.suffix == ".css"} | styles(files("*.js"))
    assert sheets == set(files("*.css"))


@pytest.mark.parametrize("suffix", ["html", "js", "css", "svg"])
def test_no_file_names_another_host(suffix: str) -> None:
    named = {
        (path.name, host)
        for path in own(f"*.{suffix}")
        for host in _HOST.findall(_COMMENT.sub("", path.read_text(encoding="utf-8")))
        if host not in NAMESPACES and not is_documentation(host)
    }
    assert named == set()


def is_documentation(address: str) -> bool:
    """Whether it is an example that RFC 2606 reserves."""
    host = urlsplit(address).hostname or ""
    return host.endswith("example.com")


def test_the_page_has_no_inline_script_or_style() -> None:
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert re.findall(r"<style|\bstyle=|\bon[a-z]+=", text) == []


@pytest.mark.parametrize(
    "forbidden",
    [
        r"[^.\w]style=",  # the policy refuses inline styles; CSSOM and SVG attributes are allowed
        r"\b(inner|outer)HTML\b",
        r"\binsertAdjacentHTML\b",
        r"\bunsafe(HTML|SVG|CSS)\b",
        r"\beval\(|\bnew Function\b",
        r"\bdocument\.write\b",
        r"\bsetAttribute\('style'",
        r"\son[a-z]+=\"",  # an inline handler in a template; lit's are @click
        r"\bjavascript:",
    ],
)
def test_no_module_writes_markup_code_or_inline_styles(forbidden: str) -> None:
    found = {
        path.name
        for path in own("*.js")
        if re.search(forbidden, _COMMENT.sub("", path.read_text(encoding="utf-8")))
    }
    assert found == set()


def test_stylesheets_load_nothing() -> None:
    for path in files("*.css"):
        assert not re.search(r"@import|url\(", path.read_text(encoding="utf-8")), path.name


def test_vendored_files_are_those_that_were_published() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files("*")}
    assert {name: found[name] for name in UNMODIFIED} == UNMODIFIED
    assert {path.name for path in VENDOR.iterdir()} == set(UNMODIFIED)


def test_every_component_says_how_it_is_used() -> None:
    for folder in ("lib", "ui", "views"):
        for path in (STATIC / folder).glob("*.js"):
            assert path.read_text(encoding="utf-8").startswith("/**"), path.name
