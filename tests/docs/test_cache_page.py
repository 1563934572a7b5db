"""`docs/reference/cache.md`: its names and numbers are those of the code."""

import ast
import re
from functools import cache

from gateway.cache.books_memory import (
    DISK_RESERVE_BYTES,
    HEADROOM,
    IMAGE_OVERHEAD_BYTES,
    LOW_FROM,
    LOW_UNTIL,
    MAX_HEADROOM_BYTES,
    MAX_IMAGES_SHARE,
    MIN_IMAGES_SHARE,
)
from gateway.cache.idempotency_keys import LOCK_SECONDS, MAX_FREE_RESULTS, RECHECK_SECONDS
from gateway.cache.tags import MAX_ENTRY_TAGS, MAX_KEY_TAGS
from gateway.images import MAX_SLOTS
from tests.docs.pages import code, codes, read_page, rows_below, rows_with, sources, text_of

PAGE = read_page("cache.md")


def nodes(*, room: str | None = None):
    """Every node of the gateway's code, or of one of its rooms."""
    for path, tree in sources("gateway").items():
        if "simulator" not in path.parts and (room is None or room in path.parts):
            yield from ast.walk(tree)


@cache
def texts():
    return {text for node in nodes() if (text := text_of(node)) is not None}


def test_the_parts_of_a_fingerprint():
    (function,) = (
        node
        for node in nodes(room="request")
        if isinstance(node, ast.FunctionDef) and node.name == "fingerprint"
    )
    keys = [
        key.value
        for node in ast.walk(function)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    assert [code(row["part"]) for row in rows_below(PAGE, "Fingerprint")] == keys


def test_the_number_of_slots():
    assert f"{MAX_SLOTS} numbered slots, 0 to {MAX_SLOTS - 1}" in PAGE.replace("\n", " ")


def test_the_bounds_of_tags():
    rows = rows_with(PAGE, "bound, for each gateway key", "most")
    assert [row["most"] for row in rows] == [f"{MAX_ENTRY_TAGS:,}", f"{MAX_KEY_TAGS:,}"]


def test_the_numbers_of_idempotency_keys():
    assert f"fewer than {MAX_FREE_RESULTS:,} of those" in PAGE
    assert (RECHECK_SECONDS, LOCK_SECONDS) == (2, 15)


def test_the_values_of_cache_status():
    for row in rows_below(PAGE, "Cache-Status"):
        value = re.sub(r"=N$", "=*", code(row["value"]))
        words = {value, value.removeprefix("detail=")}
        assert any(word in text for text in texts() for word in words), value


def test_the_directives():
    documented = {
        name for row in rows_below(PAGE, "Directives") for name in codes(row["directive"])
    }
    assert {name.partition("=")[0] for name in documented} <= texts()


def test_the_statuses_that_are_answered_with_a_stale_image():
    (row,) = rows_below(PAGE, "Stale images")
    documented = {int(status) for status in row["statuses of a failure"].split(",")}
    sets = [
        {element.value for element in node.elts if isinstance(element, ast.Constant)}
        for node in nodes()
        if isinstance(node, ast.Set)
    ]
    assert documented in sets


def test_the_outcomes_of_a_failed_fetch():
    documented = [
        code(row["outcome"]) for row in rows_with(PAGE, "outcome", "why an image was not fetched")
    ]
    lists = [
        [element.value for element in node.slice.elts if isinstance(element, ast.Constant)]
        for node in nodes(room="net")
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Tuple)
        and ast.unparse(node.value) == "Literal"
    ]
    assert documented in lists


def test_the_shares_of_images_and_books():
    assert (MIN_IMAGES_SHARE, MAX_IMAGES_SHARE, HEADROOM) == (1 / 2, 3 / 4, 1 / 8)
    (images, books, free, _) = rows_with(PAGE, "bound", "Redis", "embedded store")
    assert "at least 1/2 and at most 3/4 of `maxmemory`" in images["Redis"]
    assert f"except {DISK_RESERVE_BYTES >> 20} MiB" in books["embedded store"]
    assert f"1/8 of `maxmemory`, at most {MAX_HEADROOM_BYTES >> 30} GiB" in free["Redis"]
    text = PAGE.replace("\n", " ")
    assert f"use {LOW_FROM:.0%} of".replace("%", " %") in text
    assert f"less than {LOW_UNTIL:.0%}".replace("%", " %") in text
    assert f"its bytes and {IMAGE_OVERHEAD_BYTES} bytes of entry" in text
