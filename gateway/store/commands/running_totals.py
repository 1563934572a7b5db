"""Running totals of money: they only grow, and are never reset.

The commands that change the ledger move them in the same step (`journals.Settle`,
`ledger.Append`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.store.protocol import Command


class RunningTotal(NamedTuple):
    """Micro-dollars. What was spent is charged − corrected."""

    charged: int = 0
    corrected: int = 0
    saved: int = 0


@dataclass(frozen=True, slots=True)
class ReadFirstCharges(Command[Sequence[float | None]]):
    """When `charged` of these running totals first grew: the store's time in Unix seconds.

    None for one that was never charged, or first by an older gateway, which did not note it.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadRunningTotals(Command[Sequence[RunningTotal]]):
    """The running totals of these names, in their order; 0 for a name that has none yet."""

    names: tuple[str, ...]
