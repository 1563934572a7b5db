"""The names of all Redis keys.

Every key starts with one prefix, `igw:` by default:

| key | type | content | time to live |
|---|---|---|---|
| `igw:schema` | string | the schema version | none |
| `igw:{books}:records:<space>` | hash | records by name: `keys`, `secrets`, `names`, \
`revoked_keys`, `purges` (markers), `upstreams` (the last failures), `audit:<yyyy-mm>`, … | none |
| `igw:{books}:bucket:<subject>:<unit>` | hash | `level` and `at` of a token bucket | 2 minutes |
| `igw:{books}:window:<subject>:day:<yyyy-mm-dd>`, `…:week:<yyyy>-W<ww>`, `…:month:<yyyy-mm>` \
| hash | `<unit>:spent`, `<unit>:reserved` | 7 days after the window |
| `igw:{books}:window:<subject>:concurrency` | hash | `<unit>:reserved` | none; deleted at zero |
| `igw:{books}:journal:<purchase>` | hash | a purchase | none while open, then 7 days |
| `igw:{books}:running-totals` | hash | micro-dollars by `<name>:<kind>` | none |
| `igw:{books}:open:<worker>` | sorted set | the worker's open purchases by time | none; deleted \
when empty |
| `igw:{books}:queue:account:<account>` | hash | the bucket of an account, and its queue's counts \
| a day after its last use |
| `igw:{books}:queue:keys:<account>`, `…:heads:<account>` | hash, sorted set | the keys that wait \
for it, and the tag of each one's first purchase | the same; deleted when empty |
| `igw:{books}:queue:tickets:<account>:<key>` | sorted set | a key's purchases in order | the same |
| `igw:{books}:workers` | sorted set | workers by their last heartbeat | none |
| `igw:{books}:ledger:charged:<yyyy-mm-dd>`, `…:free:<yyyy-mm-dd>` | stream | the records of a \
day | none; trimmed |
| `igw:{books}:ledger-days:charged`, `…:free` | sorted set | the days that have a stream | none |
| `igw:{books}:ledger` | hash | the id of the last record, those of the last charged and free \
one that were removed, the bytes of free records | none |
| `igw:{books}:writers` | sorted set | writers of the ledger by their last append | none; each is \
removed after a day |
| `igw:{books}:writer-numbers` | hash | the number of each writer's last append | the same |
| `igw:{books}:refusals` | hash | counts and records of the refusals of this minute | none; \
deleted when empty |
| `igw:{books}:refusal-rows` | list | the same in order | none; deleted when empty |
| `igw:{books}:totals:<period>` | hash | the slots of a row by its dimensions; `#<group>` | none; \
removed as a whole |
| `igw:{books}:totals-full:<period>` | set | groups that may have no more rows | none; removed \
with it |
| `igw:{books}:totals-periods:<kind>` | sorted set | the periods of a kind by their end | none |
| `igw:{books}:totals-checkpoint` | string | how far the ledger is folded into totals | none |
| `igw:value:<space>:<name>` | string | a value; of the space `key_uses` the last use of a key \
| as set |
| `igw:set:<space>:<name>` | set | the members of a set | the longest requested |
| `igw:{bounded}:<space>:<name>` | sorted set | the members of a bounded set by expiry | that of \
the last member |
| `igw:{ordered}:<space>:<name>` | sorted set | the members of an ordered set, all of score 0: \
the lists of images | the longest requested |
| `igw:{hits}:<image id>` | hash | `count` and `at` of an image's hits | 39 days after the last |
| `igw:{lru}:used`, `igw:{lru}:expires` | sorted sets | digests by last use, and by expiry | none; \
deleted when empty |
| `igw:{lru}:sizes` | hash | bytes by digest | none; deleted when empty |
| `igw:{lru}:total` | string | the sum of the sizes | none; deleted at zero |
| `igw:{lru}:partials:used`, `…:expires`, `…:sizes`, `…:total` | as above | the same for the \
ephemeral blobs | the same |
| `igw:entry:{<fingerprint>}` | hash | images by slot | TTL and stale-if-error window |
| `igw:leases:{<fingerprint>}` | hash | flights by slot | the longest lease |
| `igw:flight:{<flight>}` | list | the events of a flight | as published |
| `igw:flight-ids:{<flight>}` | set | the ids of the events | the same |
| `igw:blob:<sha256>` | string | the bytes of an image | the longest requested |
| `igw:ephemeral:<sha256>` | string | the bytes of a partial image | minutes, as requested |
| `igw:probe` | – | never there: deleted to see whether the server takes writes | – |
| `igw:events:<flight>` | channel | a notification for each event | – |

Every script stays in one hash slot, so the keys work in a cluster: the books are one slot, the LRU
index is one, the bounded sets, the ordered sets and the hits are one each, everything else is
spread. (`scan_entries` scans the node that it runs on.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gateway.calendar import UTC_CALENDAR, Day
from gateway.store.commands.lru_index import LruIndex

DEFAULT_PREFIX: Final = "igw:"

_GLOB_CHARACTERS: Final = re.compile(r"[\[\]?^\\]")


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys under one prefix."""

    prefix: str
    calendar: str = ""
    """The calendar windows of two days as the scripts read them, see `windows`. Here, because an
    encoder that caches its commands has to make them again for another day."""
    day_at: Callable[[float], Day] = field(default=UTC_CALENDAR.day_at, compare=False, repr=False)
    """The calendar day of a time in Unix seconds."""

    @property
    def schema(self) -> str:
        return f"{self.prefix}schema"

    @property
    def probe(self) -> str:
        """A key that never exists for longer than a script runs."""
        return f"{self.prefix}probe"

    @property
    def books(self) -> str:
        """The start of every key of the books: no key itself, but it names their hash slot."""
        return f"{self.prefix}{{books}}:"

    @property
    def lru_index(self) -> str:
        """The same for the LRU index of images."""
        return f"{self.prefix}{{lru}}:"

    def lru_index_of(self, index: LruIndex) -> str:
        """The same for either LRU index."""
        return self.lru_index if index == "images" else f"{self.lru_index}{index}:"

    def value(self, space: str, name: str) -> str:
        return f"{self.prefix}value:{space}:{name}"

    def set(self, space: str, name: str) -> str:
        return f"{self.prefix}set:{space}:{name}"

    def bounded_set(self, space: str, name: str) -> str:
        return f"{self.prefix}{{bounded}}:{space}:{name}"

    def ordered_set(self, space: str, name: str) -> str:
        return f"{self.prefix}{{ordered}}:{space}:{name}"

    def hits(self, image_id: str) -> str:
        return f"{self.prefix}{{hits}}:{image_id}"

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

    def name_of(self, key: bytes) -> str:
        """The name by which kept reads know a key (`kept_reads`); the key itself if they do not."""
        text = key.decode("utf-8", "replace").removeprefix(self.prefix)
        if text.startswith("entry:"):
            return f"entry:{text[7:-1]}"
        return text.removeprefix("{books}:")


def match_pattern(key: str) -> str:
    """A pattern for `SCAN`: the name of a key with `*` for the part that differs."""
    return _GLOB_CHARACTERS.sub(r"\\\g<0>", key)
