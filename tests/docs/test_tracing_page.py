"""`docs/reference/tracing.md` names every attribute of a span, and no other."""

from __future__ import annotations

import re

from gateway import otel
from tests.docs.pages import ROOT, codes, read_page, rows_with

PAGE = read_page("tracing.md")
PREFIXES = ("client.", "error.", "gateway.", "gen_ai.", "http.", "server.", "url.")

SOURCE = (ROOT / "gateway" / "otel.py").read_text(encoding="utf-8")


def test_the_page_has_the_attributes_that_spans_have():
    documented = [
        name
        for row in rows_with(PAGE, "attribute", "spans", "value")
        for name in codes(row["attribute"])
    ]
    written = set(re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', SOURCE))
    assert sorted(documented) == sorted(name for name in written if name.startswith(PREFIXES))
    resource = {name for name in written if name.startswith(("service.", "telemetry."))}
    assert all(f"`{name}`" in PAGE for name in resource)


def test_the_page_has_the_bounds_of_the_export():
    text = " ".join(PAGE.split())
    assert f"{otel.QUEUE_SPANS:,} spans wait at most" in text
    assert f"at most {otel.MAX_ATTRIBUTE:,} characters" in text
    assert otel.FLUSH_SECONDS == 3
    assert otel.EXPORT_EVERY_SECONDS == 1
