"""`docs/reference/log.md` names every event of the log, with its fields."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from gateway.api.access_log import EVENT
from tests.docs.pages import codes, read_page, rows_with, sources

PAGE = read_page("log.md")
ROWS = rows_with(PAGE, "event", "level", "means", "fields")
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
WRITERS = ("write", "log_failure")
"""Names of functions that log the event which is their first argument."""


def modules() -> Iterator[ast.AST]:
    for path, tree in sources("gateway").items():
        if "simulator" not in path.parts:
            yield tree


def texts(node: ast.AST) -> list[str]:
    """The texts that an expression may be."""
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return [node.value] if is_text else []  # type: ignore[attr-defined]


@cache
def logged() -> dict[str, set[str]]:
    """Every event that the code names, with the fields that are named beside it."""
    found: dict[str, set[str]] = defaultdict(set)
    found[EVENT] = set()
    for node in (node for tree in modules() for node in ast.walk(tree)):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "event" and node.value:
            found.update({name: set() for name in texts(node.value)})
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        owner, _, last = name.rpartition(".")
        fields = {k.arg for k in node.keywords if k.arg and k.arg not in ("exc_info", "event")}
        if name == "Condition":
            for event in (*texts(node.args[1]), *texts(node.args[2])):
                found[event] |= set()
        elif (owner.endswith("log") and last in LEVELS) or name in WRITERS:
            for event in texts(node.args[0]) if node.args else ():
                # `log_failure` has arguments, which are not named like their fields.
                found[event] |= fields if name != "log_failure" else set()
        for keyword in node.keywords:
            if keyword.arg == "event" and name == "StartFailure":
                found.update({text: set() for text in texts(keyword.value)})
    return found


def test_the_page_names_exactly_the_events():
    documented = [name for row in ROWS for name in codes(row["event"])]
    assert sorted(documented) == sorted([*logged(), "…_unreadable"])


def test_the_page_has_the_fields_of_each_event():
    code = logged()
    for row in ROWS:
        documented = set(codes(row["fields"]))
        for event in codes(row["event"]):
            if documented:
                assert code.get(event, set()) <= documented | {"pid"}, event
