"""The names of all Redis keys.

Every key starts with one prefix, `igw:` by default:

| key | type | content | time to live |
|---|---|---|---|
| `igw:schema` | string | the schema version | none |
| `igw:{books}:records:<space>` | hash | records by name | none |
| `igw:{books}:bucket:<subject>:<unit>` | hash | `level` and `at` of a token bucket | 2 minutes |
| `igw:{books}:window:<subject>:day:<yyyy-mm-dd>`, `…:month:<yyyy-mm>` | hash | `<unit>:spent`, \
`<unit>:reserved` | 7 days after the window |
| `igw:{books}:window:<subject>:concurrency` | hash | `<unit>:reserved` | none; deleted at zero |
| `igw:{books}:journal:<purchase>` | hash | a purchase | none while open, then 7 days |
| `igw:{books}:open:<worker>` | sorted set | the worker's open purchases by time | none; deleted \
when empty |
| `igw:{books}:workers` | sorted set | workers by their last heartbeat | none |
| `igw:{books}:ledger:<yyyy-mm-dd>` | stream | the records of a day | none |
| `igw:{books}:ledger-days` | sorted set | the days that have a stream | none |
| `igw:{books}:appended:<batch>` | string | ids of appends | an hour |
| `igw:value:<space>:<name>` | string | a value | as set |
| `igw:set:<space>:<name>` | set | the members of a set | the longest requested |
| `igw:{bounded}:<space>:<name>` | sorted set | the members of a bounded set by expiry | that of \
the last member |
| `igw:{lru}:used`, `igw:{lru}:expires` | sorted sets | digests by last use, and by expiry | none; \
deleted when empty |
| `igw:{lru}:sizes` | hash | bytes by digest | none; deleted when empty |
| `igw:{lru}:total` | string | the sum of the sizes | none; deleted at zero |
| `igw:entry:{<fingerprint>}` | hash | images by slot | TTL and stale-if-error window |
| `igw:leases:{<fingerprint>}` | hash | flights by slot | the longest lease |
| `igw:flight:{<flight>}` | list | the events of a flight | as published |
| `igw:flight-ids:{<flight>}` | set | the ids of the events | the same |
| `igw:blob:<sha256>` | string | the bytes of an image | the longest requested |
| `igw:ephemeral:<sha256>` | string | the bytes of a partial image | minutes, as requested |
| `igw:events:<flight>` | channel | a notification for each event | – |

Every script stays in one hash slot, so the keys work in a cluster: the books are one slot, the LRU
index is one, the bounded sets are one, everything else is spread. (`scan_entries` scans the node
that it runs on.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DEFAULT_PREFIX: Final = "igw:"

_GLOB_CHARACTERS: Final = re.compile(r"[\[\]?^\\]")


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys under one prefix."""

    prefix: str

    @property
    def schema(self) -> str:
        return f"{self.prefix}schema"

    @property
    def books(self) -> str:
        """The start of every key of the books: no key itself, but it names their hash slot."""
        return f"{self.prefix}{{books}}:"

    @property
    def lru_index(self) -> str:
        """The same for the LRU index."""
        return f"{self.prefix}{{lru}}:"

    def value(self, space: str, name: str) -> str:
        return f"{self.prefix}value:{space}:{name}"

    def set(self, space: str, name: str) -> str:
        return f"{self.prefix}set:{space}:{name}"

    def bounded_set(self, space: str, name: str) -> str:
        return f"{self.prefix}{{bounded}}:{space}:{name}"

    def records(self, space: str) -> str:
        return f"{self.books}records:{space}"

    def journal(self, purchase: str) -> str:
        return f"{self.books}journal:{purchase}"

    def entry(self, fingerprint: str) -> str:
        return f"{self.prefix}entry:{{{fingerprint}}}"

    def fingerprint(self, entry: str) -> str:
        """The inverse of `entry`."""
        return entry.removeprefix(f"{self.prefix}entry:{{").removesuffix("}")

    def leases(self, fingerprint: str) -> str:
        return f"{self.prefix}leases:{{{fingerprint}}}"

    def events(self, flight: str) -> str:
        return f"{self.prefix}flight:{{{flight}}}"

    def event_ids(self, flight: str) -> str:
        return f"{self.prefix}flight-ids:{{{flight}}}"

    def channel(self, flight: str) -> str:
        """The pub/sub channel of a flight, which is no key."""
        return f"{self.prefix}events:{flight}"

    def blob(self, digest: str, *, kind: str = "blob") -> str:
        """`kind` is `blob`, or `ephemeral` for the bytes of partial images."""
        return f"{self.prefix}{kind}:{digest}"


def match_pattern(key: str) -> str:
    """A pattern for `SCAN`: the name of a key with `*` for the part that differs."""
    return _GLOB_CHARACTERS.sub(r"\\\g<0>", key)
