"""The ledger's records."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.store.protocol import Command

APPENDED_SECONDS: Final = 3600
"""How long the id of an append is remembered."""


@dataclass(frozen=True, slots=True)
class Append(Command[None]):
    """Adds records to the ledger, in order, under the day of now.

    `batch_id` makes it repeatable for an hour: records of an id that was appended are dropped.
    """

    records: tuple[bytes, ...]
    batch_id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True, slots=True)
class ReadLedger(Command[Sequence[tuple[str, bytes]]]):
    """Up to `limit` ledger records after the id `after` ("" = from the start), oldest first.

    Ids are strings that grow with time: `<yyyy-mm-dd>/<position>`.
    """

    after: str = ""
    limit: int = 1000
