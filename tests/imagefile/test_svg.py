"""SVG files: XML within bounds passes and says what in it is active, anything else is rejected."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.imagefile import svg
from gateway.imagefile.check import check_image, detect_format
from gateway.imagefile.convert import transcode_image
from gateway.imagefile.facts import BadImage, ImageFacts
from gateway.simulator.vectors import draw_svg
from tests.examples import examples
from tests.processor import processor_seconds
from tests.rows import each_row

XMLNS = 'xmlns="http://www.w3.org/2000/svg"'


def check(text: str | bytes) -> ImageFacts:
    data = text.encode() if isinstance(text, str) else text
    return check_image(data, max_bytes=64 * 2**20, max_pixels=1)


def root(content: str = "", attributes: str = "") -> str:
    return f"<svg {XMLNS} {attributes}>{content}</svg>"


def photograph(size: int) -> str:
    return f'<image href="data:image/png;base64,{"A" * size}"/>'


SAMPLE = draw_svg("an <otter> & a pond", width=60, height=40, seed=1)

# ── what passes ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        SAMPLE,
        root(),
        f"<svg {XMLNS}/>",
        f'\ufeff<?xml version="1.0" encoding="UTF-8"?>\n<!-- by hand -->\n{root()}\n',
        '<s:svg xmlns:s="http://www.w3.org/2000/svg"><s:g/></s:svg>',
        root("<g>" * 99 + "</g>" * 99),
        pytest.param(root("<g/>" * 99_999), marks=pytest.mark.long),
        root("<style><![CDATA[ a > b { fill: red } ]]></style>"),
        root('<text title=">">&lt;&#65;&amp; ä 猫</text><?note a < b?><!-- < > " -->'),
        root(photograph(2_000_000)),
        root("<!--" + "x" * 200_000 + "-->" + "y" * 200_000),
    ],
    ids=lambda text: text[:30],
)
def test_a_whole_svg_passes(text):
    facts = check(text)
    assert (facts.format, facts.active) == ("svg", ())


@each_row(
    ("attributes", "size"),
    [
        ('width="60" height="40"', (60, 40)),
        ('width="60.2px" height=" 40 "', (61, 40)),
        ('width="1in" height="2.54cm"', (96, 96)),
        ('viewBox="0 0 24 12"', (24, 12)),
        ('viewBox="-5,-5 24, 12.5"', (24, 13)),
        ('viewBox="0 0 24 12" width="100%" height="100%"', (24, 12)),
        ('viewBox="0 0 24 12" width="48"', (48, 24)),
        ('viewBox="0 0 24 12" height="48"', (96, 48)),
        ("", (0, 0)),
        ('width="60"', (0, 0)),
        ('width="-1" height="1"', (0, 0)),
        ('width="1e9" height="1"', (0, 0)),
        ('width="99999999" height="1"', (0, 0)),
        ('width="0" height="0"', (0, 0)),
        ('viewBox="0 0 0 12"', (0, 0)),
        ('viewBox="nonsense"', (0, 0)),
        (f'width="{"9" * 60_000}" height="1"', (0, 0)),
    ],
)
def test_the_size_is_that_of_the_attributes_or_the_view_box(attributes, size):
    facts = check(root(attributes=attributes))
    assert (facts.width, facts.height) == size


# ── what is active ──────────────────────────────────────────────────────────────────────────

SCRIPT, REFERENCES, FOREIGN = svg.ACTIVE


@each_row(
    ("content", "active"),
    [
        ("<script>alert(1)</script>", (SCRIPT,)),
        ("<SCRIPT/>", (SCRIPT,)),
        ('<x:script xmlns:x="http://www.w3.org/1999/xhtml"/>', (SCRIPT,)),
        ('<g onload="alert(1)"/>', (SCRIPT,)),
        ('<g OnClick=""/>', (SCRIPT,)),
        ('<a href=" java&#10;script:alert(1)"/>', (SCRIPT,)),
        ('<a xlink:href="JavaScript:alert(1)"/>', (SCRIPT,)),
        ('<set attributeName="href" to="javascript:alert(1)"/>', (SCRIPT,)),
        ('<animate values="x;javascript:alert(1)"/>', (SCRIPT,)),
        ('<a href="https://example.com/"/>', (REFERENCES,)),
        ('<image href="//example.com/a.png"/>', (REFERENCES,)),
        ('<use href="other.svg#a"/>', (REFERENCES,)),
        ('<g xml:base="https://example.com/"/>', (REFERENCES,)),
        ('<g fill="url(https://example.com/#a)"/>', (REFERENCES,)),
        ("<g style=\"background: URL( 'https://example.com/a' )\"/>", (REFERENCES,)),
        (r'<g style="background: u\72l(https://example.com/a)"/>', (REFERENCES,)),
        ("<style>@import 'a.css';</style>", (REFERENCES,)),
        (r"<style>@\69mport 'a.css';</style>", (REFERENCES,)),
        ("<style><![CDATA[@import url(a.css)]]></style>", (REFERENCES,)),
        ("<style>" + " " * 131_065 + "@import url(a.css);</style>", (REFERENCES,)),
        ("<?xml-stylesheet href='a.css'?>", (REFERENCES,)),
        ("<foreignObject><p>hello</p></foreignObject>", (FOREIGN,)),
        ('<h:iframe xmlns:h="http://www.w3.org/1999/xhtml"/>', (FOREIGN,)),
        ('<use href="data:image/svg+xml,&lt;svg/>"/>', (FOREIGN,)),
        ('<a href="data:text/html,hello"/>', (FOREIGN,)),
        ('<script/><a href="/"/><iframe/>', (SCRIPT, REFERENCES, FOREIGN)),
        # Nothing to run or load.
        ('<use href="#a"/><g fill="url(#a)" clip-path="url(\'#b\')" style="fill:url(#c)"/>', ()),
        ('<image href="data:image/jpeg;base64,AAAA"/><text>javascript: @import</text>', ()),
        ('<g xmlns:xlink="http://www.w3.org/1999/xlink" transform="translate(1 2)"/>', ()),
        ("<style>g { fill: url(#a); src: url(data:font/woff2;base64,AAAA) }</style>", ()),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_what_a_browser_could_run_or_load_is_reported(content, active):
    assert check(root(content)).active == active


# ── what is rejected ────────────────────────────────────────────────────────────────────────

NOT_XML = "SVG is cut short, or not XML"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"<!DOCTYPE svg>{root()}", "SVG with a DTD"),
        (f'<!DOCTYPE svg [<!ENTITY a "b">]>{root("&a;")}', "SVG with a DTD"),
        (f'<!DOCTYPE svg SYSTEM "http://a/">{root()}', "SVG with a DTD"),
        (root("<!DOCTYPE svg>"), "SVG with a DTD"),
        (root("&nbsp;"), "SVG that is not XML: undefined entity"),
        (root('<!ENTITY a "b">'), NOT_XML),
        (root("<g>" * 100 + "</g>" * 100), "SVG of more than 100 levels"),
        (root("<g/>" * 100_000), "SVG of more than 100000 elements"),
        pytest.param(
            root("<!---->" * 400_001), "SVG of too many small parts", marks=pytest.mark.long
        ),
        (root(f'<g id="{"x" * 65_536}"/>'), "SVG with a tag of more than 65536 bytes"),
        (
            root(f'<image id="{"x" * 65_536}" href="data:,{"x" * 9_000}"/>'),
            "SVG with a tag of more than 65536 bytes",
        ),
        (
            root("<g " + "".join(f'a{n}="data:,x" ' for n in range(9_000)) + "/>"),
            "SVG with a tag of more than 65536 bytes",
        ),
        (root("x" * svg.MAX_BYTES), "SVG larger than 8388608 bytes"),
        (root(attributes='a="1" a="2"'), "SVG that is not XML: duplicate attribute"),
        (root('<g a="<"/>'), "SVG that is not XML: not well-formed .invalid token."),
        (root("<g>"), "SVG that is not XML: mismatched tag"),
        (root()[:-1], NOT_XML),
        (root() + root(), "SVG that is not XML: junk after document element"),
        (root("<!-- "), NOT_XML),
        ("<svg/>", "XML whose root is not svg of the SVG namespace"),
        ('<svg xmlns="http://www.w3.org/1999/xhtml"/>', "XML whose root is not svg of the SVG .*"),
        (f"<html>{root()}</html>", "XML whose root is not svg of the SVG namespace"),
        (f'<?xml version="1.0" encoding="utf-16"?>{root()}', "SVG that is not UTF-8"),
        (root("é").encode("latin-1"), "SVG that is not UTF-8"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "bytes",
)
def test_the_message_says_why_an_svg_is_rejected(text, reason):
    with pytest.raises(BadImage, match=f"^{reason}$"):
        check(text)


def test_what_is_no_svg_is_not_taken_for_one():
    for text in ("<html><p>hello</p></html>", "<Error/>", "svg", "{}", "<svgx/>", " <!-- "):
        assert detect_format(text.encode()) is None
    assert detect_format(root().encode("utf-16")) is None
    assert transcode_image(SAMPLE.encode(), format="jpeg", compression=90) is None


def test_any_truncated_svg_fails():
    data = SAMPLE.strip().encode()
    for length in range(len(data)):
        with pytest.raises(BadImage):
            check(data[:length])


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), max_size=8))
def test_damaged_bytes_raise_nothing_but_bad_image(changes):
    data = bytearray(SAMPLE.encode())
    for position, value in changes:
        start = position % len(data)
        data[start : start + 1] = value or b"<"
    with suppress(BadImage):
        check(bytes(data))


MARKUP = ("<", ">", "/", "!", "?", "--", "<!--", "-->", "<![CDATA[", "]]>", '"', "'", "=", "&", " ")


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.sampled_from([*MARKUP, "svg", "g", "a", "&#0;", "\x00", "é", ":"]), max_size=40))
def test_random_markup_raises_nothing_but_bad_image(parts):
    for text in ("<svg " + "".join(parts), root("".join(parts))):
        with suppress(BadImage):
            check(text)


MANY = 1_200_000
HOSTILE: dict[str, Callable[[], str]] = {
    "attributes": lambda: "<svg " + "".join(f'a{n}="" ' for n in range(300_000)) + "/>",
    "unclosed": lambda: root("<!--" * MANY),
    "quotes": lambda: "<svg " + '"' * 8_000_000,
    "angles": lambda: "<svg " + '<"' * 4_000_000,
    "photograph": lambda: root(photograph(8_000_000)),
}
SLOW: dict[str, Callable[[], str]] = {
    "namespace": lambda: root("<a/>" * 90_000, f'xmlns:a="{"x" * 60_000}"'),
    "comments": lambda: root("<!---->" * MANY),
    "tags": lambda: root(("<g " + "".join(f'a{n}="" ' for n in range(6_500)) + "/>") * 110),
    "escapes": lambda: root("<style>" + "@\\" * 4_000_000 + "</style>"),
    "elements": lambda: root('<g a="1" transform="scale(1)" fill="url(#a)" style="a:b"/>' * 99_999),
}
"""Up to 1.5 s."""


@pytest.mark.parametrize(
    "write", [*HOSTILE.values(), *(pytest.param(f, marks=pytest.mark.long) for f in SLOW.values())]
)
def test_a_hostile_svg_takes_seconds_at_most(write):
    text = write()

    def check_hostile():
        with suppress(BadImage):
            svg.check_svg(text.encode())

    assert processor_seconds(check_hostile, best_of=1) < 4


@pytest.mark.parametrize("escaped", [r"\\", r"\61 "])
def test_a_style_of_nothing_but_escapes_is_flagged_and_takes_no_longer(escaped):
    text = root(f"<style>{escaped * 300_000}</style>").encode()
    assert processor_seconds(lambda: svg.check_svg(text), best_of=1) < 0.2
    assert svg.check_svg(text).active == (REFERENCES,)


def test_a_large_file_does_not_take_the_time_of_the_interpreter():
    """One call on all of it would hold the lock that the event loop needs for a tenth of a second.

    The file is as large as allowed, so that a check in this thread would take long.
    """
    script = "<script/><!--" + "x" * 4_000_000 + "-->"
    text = root(script + photograph(4_000_000), 'width="60" height="40"').encode()
    found = []
    assert processor_seconds(lambda: found.append(check(text)), best_of=1) < 0.05
    assert found == [ImageFacts("svg", 60, 40, active=(SCRIPT,))]
    with pytest.raises(BadImage, match="SVG with a DTD"):
        check(b"<!DOCTYPE svg>" + text)


def test_without_processes_a_large_file_is_checked_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nothing/there")
    assert check(root(photograph(300_000))).format == "svg"
