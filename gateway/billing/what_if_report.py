"""A usage report whose rows also say what they would have cost otherwise (`what_if`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

from gateway.billing.record_amounts import Sums
from gateway.billing.reports import SLICE_ROWS, ReportQuery, ReportRow, Reports
from gateway.billing.what_if import Uncomputed, WhatIf, WhatIfAnswer, answer_row, uncomputed_parts
from gateway.catalog import Catalog

_NEEDED: Final = ("model", "size", "quality")
"""The dimensions that prices depend on."""
_SLICE: Final = SLICE_ROWS // 4
"""Rows that are computed at once. It takes about a millisecond of the event loop."""


@dataclass(frozen=True, slots=True)
class WhatIfReport:
    """The rows of a report, what each would have cost in micro-dollars, and all together."""

    rows: tuple[ReportRow, ...]
    cost_micros: tuple[int, ...]
    answer: WhatIfAnswer


async def run_what_if(
    reports: Reports, query: ReportQuery, question: WhatIf, catalog: Catalog
) -> WhatIfReport:
    """Reads the rows by model, size and quality too, and adds them up to those of the query.

    Raises `ReportRefused` and `StoreUnavailable`.
    """
    missing = tuple(name for name in _NEEDED if name not in query.group_by)
    finer = await reports.run(replace(query, group_by=(*query.group_by, *missing)))
    found: dict[tuple[object, ...], list[tuple[ReportRow, int]]] = {}
    left: list[Uncomputed] = []
    for index, row in enumerate(finer):
        if index % _SLICE == 0:
            await asyncio.sleep(0)
        cost, uncomputed = answer_row(question, row, catalog)
        left += uncomputed
        group = row.starts_at, *(row.dimensions[name] for name in query.group_by)
        found.setdefault(group, []).append((row, cost))
    rows, costs = [], []
    for index, parts in enumerate(found.values()):
        if index % _SLICE == 0:
            await asyncio.sleep(0)
        rows.append(_merge([row for row, _ in parts], query))
        costs.append(sum(cost for _, cost in parts))
    charged = sum(row.sums.cost_micros for row in finer)
    answer = WhatIfAnswer(charged, sum(costs), uncomputed_parts(left))
    return WhatIfReport(tuple(rows), tuple(costs), answer)


def _merge(rows: list[ReportRow], query: ReportQuery) -> ReportRow:
    dimensions = {name: rows[0].dimensions[name] for name in query.group_by}
    return replace(rows[0], dimensions=dimensions, sums=_add(row.sums for row in rows))


def _add(parts: Iterable[Sums]) -> Sums:
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    kinds: dict[str, dict[str, int]] = {"tokens": {}, "costs": {}}
    for name, added in kinds.items():
        for sums in parts:
            for kind, amount in getattr(sums, name).items():
                added[kind] = added.get(kind, 0) + amount
    plain = {
        f.name: sum(getattr(sums, f.name) for sums in parts)
        for f in fields(Sums)
        if f.name not in kinds
    }
    return Sums(**plain, tokens=kinds["tokens"], costs=kinds["costs"])
