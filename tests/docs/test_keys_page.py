"""`docs/reference/keys.md` agrees with the code."""

from __future__ import annotations

import ast
import re

from gateway.access.key_records import MAX_OVERLAP_SECONDS, MAX_SECRETS, KeySpec
from gateway.access.labels import MAX_LABEL_CHARACTERS, MAX_LABELS
from gateway.proxy.interpret import MAX_USER
from tests.docs.pages import code, codes, read_page, rows_below, sources, text_of

PAGE = read_page("keys.md")
ACTION = re.compile(r"[a-z_]+\.[a-z_]+")
KINDS = ("key", "cache", "signing_key", "backup", "team", "limits", "everyone", "sign_in_link")
OF_UPSTREAMS = {"upstream.disable", "upstream.enable"}
"""Settings begin with `upstream.` too."""


def test_the_page_names_every_action_of_the_audit():
    actions = {
        name
        for tree in sources("gateway").values()
        for node in ast.walk(tree)
        if (name := text_of(node)) and ACTION.fullmatch(name)
    }
    listed = {n for row in rows_below(PAGE, "Audit") for n in codes(row["action"])}
    assert actions >= OF_UPSTREAMS
    assert {name for name in actions if name.split(".")[0] in KINDS} | OF_UPSTREAMS == listed


def test_the_page_lists_every_field_in_order():
    assert [code(row["field"]) for row in rows_below(PAGE, "Fields")] == list(KeySpec.model_fields)


def test_the_page_names_the_bounds_of_rotation():
    assert f"At most {MAX_SECRETS} secrets of a key" in PAGE
    assert f"(at most {MAX_OVERLAP_SECONDS // 86_400} days)" in PAGE


def test_the_page_names_the_bounds_of_labels_and_users():
    assert f"`labels` are up to {MAX_LABELS} pairs" in PAGE
    assert f"a value has 1 to {MAX_LABEL_CHARACTERS} printable" in PAGE
    assert f"at most {MAX_USER} characters" in PAGE
