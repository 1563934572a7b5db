"""The ledger: records in the order in which they were appended, by UTC day."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.store.protocol import Command

APPENDED_SECONDS: Final = 3600
"""How long the id of an append is kept, so that a repeated append is dropped."""


@dataclass(frozen=True, slots=True)
class Append(Command[None]):
    """Appends records to the current day, in order.

    `batch_id` makes it repeatable for an hour: a second append with the same id is dropped.
    """

    records: tuple[bytes, ...]
    batch_id: str = field(default_factory=lambda: secrets.token_hex(12))
    saved: Mapping[str, int] = field(default_factory=dict)
    """Running total → micro-dollars that the records' images had cost, added in the same step."""


@dataclass(frozen=True, slots=True)
class ReadLedger(Command[Sequence[tuple[str, bytes]]]):
    """Up to `limit` pairs of id and record after the id `after` ("": from the start).

    Oldest first. Ids, `<yyyy-mm-dd>/<position>`, grow as strings; `<yyyy-mm-dd>/` comes before all
    ids of its day.
    """

    after: str = ""
    limit: int = 1000
