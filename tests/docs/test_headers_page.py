"""`docs/reference/headers.md` names every HTTP header that the gateway reads or writes.

A header of the code is a string literal that is the name of one, or `hdrs.NAME` of aiohttp.
"""

import ast
import re

import pytest
from aiohttp import hdrs
from pydantic import ValidationError

from gateway.configuration.settings import Settings
from tests.docs.pages import code, codes, read_page, rows_below, sources, tables, text_of
from tests.rows import each_row

PAGE = read_page("headers.md")
SIMULATED = "Simulated upstream"
FIXED = "Headers that upstream.headers cannot set"

KNOWN = {str(name).lower() for name in vars(hdrs).values() if isinstance(name, hdrs.istr)}
KNOWN |= {
    *("alt-svc", "api-key", "cache-status", "content-security-policy", "preference-applied"),
    *("cross-origin-opener-policy", "cross-origin-resource-policy", "permissions-policy"),
    *("idempotency-key", "prefer", "referrer-policy"),
    *("traceparent", "tracestate"),
    *("access-control-allow-private-network", "access-control-request-private-network"),
    *("ocp-apim-subscription-key", "sec-fetch-site"),
    *("proxy-connection", "strict-transport-security", "x-content-type-options"),
}
OWN = re.compile(r"(?:x|openai|retry|cf|idempoten\w*)-[a-z0-9*-]*[a-z0-9*]")
"""Names that `KNOWN` does not list."""
SINGLE = {"date", "pragma", "prefer", "traceparent", "tracestate"}
"""Names of one word that the code writes in lower case; others are written as in RFC 9110."""


def plain(name: str) -> str:
    """A name in lower case, with `*` for each placeholder."""
    return re.sub(r"\{\w+\}", "*", name).lower()


def is_header(literal: str) -> bool:
    name = literal.lower()
    if OWN.fullmatch(name):
        return True
    is_one_word = "-" not in name
    return name in KNOWN and (not is_one_word or literal[0].isupper() or name in SINGLE)


def literal_of(node: ast.AST) -> str | None:
    if (text := text_of(node)) is not None:
        return text
    is_name = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    if is_name and node.value.id == "hdrs" and not node.attr.startswith("METH_"):
        return str(getattr(hdrs, node.attr))
    return None


def headers_of(*, simulator: bool) -> set[str]:
    trees = [tree for path, tree in sources("gateway").items() if in_simulator(path) == simulator]
    assert trees
    literals = {literal_of(node) for tree in trees for node in ast.walk(tree)}
    return {plain(literal) for literal in literals if literal and is_header(literal)}


def in_simulator(path) -> bool:
    return "simulator" in path.parts


def documented(*, simulator: bool) -> set[str]:
    return {
        plain(name)
        for heading, rows in tables(PAGE)
        if (heading == SIMULATED) == simulator
        for row in rows
        for name in codes(row["header"])
        if simulator or heading != FIXED or "-" in name  # other words would match anything
    }


@pytest.mark.parametrize("simulator", [False, True])
def test_the_page_names_exactly_the_headers_of_the_code(simulator: bool):
    assert sorted(documented(simulator=simulator)) == sorted(headers_of(simulator=simulator))


@each_row("row", rows_below(PAGE, FIXED), ids=lambda row: code(row["header"]))
def test_upstream_headers_cannot_set_a_fixed_header(row):
    with pytest.raises(ValidationError, match="cannot be set here"):
        Settings.model_validate({"upstream": {"headers": {code(row["header"]): "any"}}})
