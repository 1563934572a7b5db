"""The names of all keys.

All state lies under one prefix, `igw:` unless told otherwise:

| key | type | what | time to live |
|---|---|---|---|
| `igw:layout` | string | the layout's version | none |
| `igw:{books}:records:<space>` | hash | records by name | none |
| `igw:{books}:bucket:<scope>:<unit>` | hash | `level`, `at` of a token bucket | 2 minutes |
| `igw:{books}:window:<scope>:day:<yyyy-mm-dd>`, `…:month:<yyyy-mm>` | hash | `<unit>:spent`, \
`<unit>:reserved` | 7 days after the window |
| `igw:{books}:window:<scope>:open` | hash | `<unit>:reserved` right now | none; gone at zero |
| `igw:{books}:journal:<purchase>` | hash | a purchase | none while open, then 7 days |
| `igw:{books}:open:<worker>` | sorted set | its open purchases by time | none; gone when empty |
| `igw:{books}:workers` | sorted set | workers by their last beat | none |
| `igw:{books}:ledger:<yyyy-mm-dd>` | stream | a day's records | none |
| `igw:{books}:ledger-days` | sorted set | the days that have a stream | none |
| `igw:{books}:appended:<batch>` | string | ids of what was appended | an hour |
| `igw:note:<space>:<name>` | string | a note | as the note says |
| `igw:list:<space>:<name>` | set | a list's members | the longest asked for |
| `igw:{shelf}:used`, `…:ends` | sorted sets | digests by their last use, and by the end of their \
stay | none; gone when empty |
| `igw:{shelf}:sizes` | hash | bytes by digest | none; gone when empty |
| `igw:{shelf}:total` | string | their sum | none; gone at zero |
| `igw:entry:{<fingerprint>}` | hash | images by slot | their lifetime + linger |
| `igw:claims:{<fingerprint>}` | hash | flights by slot | the longest lease |
| `igw:flight:{<flight>}` | list | its events | the flight's lifetime |
| `igw:flight-ids:{<flight>}` | set | the ids of its events | the same |
| `igw:blob:<sha256>` | string | an image's bytes | the longest asked for |
| `igw:passing:<sha256>` | string | a partial image's bytes | minutes, as asked for |
| `igw:wake:<flight>` | channel | rings when an event was published | – |

No script touches two hash slots, so a cluster could hold this: the books are one slot, the shelf is
one, everything else spreads. (The scan of entries takes what is on its node.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# ── keys ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys under one prefix; their table is in `redis`."""

    prefix: str

    @property
    def layout(self) -> str:
        return f"{self.prefix}layout"

    @property
    def books(self) -> str:
        """What every key of the books begins with; no key itself, but it names their slot."""
        return f"{self.prefix}{{books}}:"

    @property
    def lru_totals(self) -> str:
        """The same for the shelf."""
        return f"{self.prefix}{{shelf}}:"

    def note(self, space: str, name: str) -> str:
        return f"{self.prefix}note:{space}:{name}"

    def list_of(self, space: str, name: str) -> str:
        return f"{self.prefix}list:{space}:{name}"

    def records(self, space: str) -> str:
        return f"{self.books}records:{space}"

    def entry(self, fingerprint: str) -> str:
        return f"{self.prefix}entry:{{{fingerprint}}}"

    def fingerprint(self, entry: str) -> str:
        """Whose entry a key is."""
        return entry.removeprefix(f"{self.prefix}entry:{{").removesuffix("}")

    def claims(self, fingerprint: str) -> str:
        return f"{self.prefix}claims:{{{fingerprint}}}"

    def events(self, flight: str) -> str:
        return f"{self.prefix}flight:{{{flight}}}"

    def event_ids(self, flight: str) -> str:
        return f"{self.prefix}flight-ids:{{{flight}}}"

    def wake(self, flight: str) -> str:
        """A channel, no key."""
        return f"{self.prefix}wake:{flight}"

    def bytes_of(self, kind: str, digest: str) -> str:
        """Where bytes lie: `blob` for an image's, `passing` for what lives for minutes."""
        return f"{self.prefix}{kind}:{digest}"


def pattern_of(key: str) -> str:
    """Finds the keys of a kind: `key` is the name of one of them, with `*` for what differs."""
    return "*".join(_SPECIAL.sub(r"\\\g<0>", part) for part in key.split("*"))


_SPECIAL: Final = re.compile(r"[\[\]?^\\]")
