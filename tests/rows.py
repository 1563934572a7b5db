"""One test for all rows of a table.

Each item of pytest costs 5 ms of a processor: every worker collects it, and one reports it. A row
of a pure function takes microseconds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


def each_row(
    names: str | Sequence[str],
    rows: Iterable[Any],
    ids: Iterable[str] | Callable[[Any], object] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `pytest.mark.parametrize`, but one test, which tries all rows and names those that fail.

    The rows share the test's fixtures, so these must not remember a row. A row has no marks.
    """
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    rows = list(rows)
    tuples = [(row,) for row in rows] if len(arguments) == 1 else rows
    given = [dict(zip(arguments, row, strict=True)) for row in tuples]
    labels = [repr(row) for row in rows] if ids is None or callable(ids) else list(ids)
    table = list(zip(labels, given, strict=True))

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        def run(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for label, row in table:
                with kept(failures, label):
                    test(**fixtures, **row)
            report(failures)

        async def run_async(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for label, row in table:
                with kept(failures, label):
                    await test(**fixtures, **row)
            report(failures)

        whole = functools.wraps(test)(run_async if inspect.iscoroutinefunction(test) else run)
        signature = inspect.signature(test)
        fixtures = [p for name, p in signature.parameters.items() if name not in arguments]
        vars(whole)["__signature__"] = signature.replace(parameters=fixtures)
        return whole

    return decorate


@contextmanager
def kept(failures: list[BaseException], label: str) -> Iterator[None]:
    """Adds what the block raises to `failures`, with the name of its row."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - reported together
        error.add_note(f"in the row {label}")
        failures.append(error)


def report(failures: Sequence[BaseException]) -> None:
    if failures:
        raise BaseExceptionGroup("rows that failed", failures)
