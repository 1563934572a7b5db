"""The decorator of tables: each row is tried, and each that fails is named."""

from __future__ import annotations

import inspect

import pytest

from tests.rows import each_row

ROWS = [(1, "one"), (2, "two"), (3, "three")]


@pytest.fixture
def even() -> set[int]:
    return {2}


@each_row(("number", "word"), ROWS)
async def test_a_row_has_the_fixtures_of_the_test(even: set[int], number: int, word: str) -> None:
    assert (number in even) == (word == "two")


def test_all_rows_are_tried_and_those_that_fail_are_named() -> None:
    tried = []

    @each_row("number, word", ROWS, ids=["a", "b", "c"])
    def check(number: int, word: str) -> None:
        tried.append(word)
        if number == 1:
            pytest.fail("as the first one does")
        assert number == 2

    with pytest.raises(BaseExceptionGroup) as raised:
        check()
    assert tried == ["one", "two", "three"]
    notes = [note for error in raised.value.exceptions for note in error.__notes__]
    assert notes == ["in the row a", "in the row c"]
    assert not inspect.signature(check).parameters


async def test_so_are_those_of_a_coroutine() -> None:
    @each_row("number", [1, 2])
    async def check(number: int) -> None:
        assert number == 2

    with pytest.raises(BaseExceptionGroup) as raised:
        await check()
    assert raised.value.exceptions[0].__notes__ == ["in the row 1"]
