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
| `igw:{books}:reserved:<worker>` | hash | what each of the worker's open purchases has reserved \
| 7 days after the worker's last heartbeat |
| `igw:{books}:queue:account:<account>` | hash | the bucket of an account, and its queue's counts \
| a day after its last use |
| `igw:{books}:queue:keys:<account>`, `…:heads:<account>` | hash, sorted set | the keys that wait \
for it, and the tag of each one's first purchase | the same; deleted when empty |
| `igw:{books}:queue:tickets:<account>:<key>` | sorted set | a key's purchases in order | the same |
| `igw:{books}:queue:taken:<account>:<worker>`, `…:slow:<account>` | set | the worker's purchases \
whose turn has come; the workers that are passed over | the same |
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
| `igw:fence` | string | written before `WAIT`, see `replication`; in a cluster `igw:fence:{…}` | \
60 s |
| `igw:events:<flight>` | channel | a notification for each event | – |
| `igw:events:changes` | channel | what was changed, see `cluster.tracking` | – |

Every script declares all keys that it touches, and they are in one hash slot, so it works in a
cluster: the books are one slot, the LRU index is one, the bounded sets, the ordered sets and the
hits are one each, everything else is spread. `scan_entries` has no key: it scans the node that it
runs on. A script that finds that it needs further keys writes nothing and asks for them, see
`repeats`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from gateway.calendar import UTC_CALENDAR, Day
from gateway.limits import CALENDAR_PERIODS
from gateway.store.commands.lru_index import LruIndex
from gateway.store.redis.windows import Today

DEFAULT_PREFIX: Final = "igw:"

_GLOB_CHARACTERS: Final = re.compile(r"[\[\]?^\\]")


@dataclass(frozen=True, slots=True, eq=False)  # encoders cache commands by it: identity is faster
class Keys:
    """The names of all keys under one prefix."""

    prefix: str
    calendar: str = ""
    """The calendar windows of two days as the scripts read them, see `windows`. Here, because an
    encoder that caches its commands has to make them again for another day."""
    days: tuple[str, ...] = ()
    """The two UTC days of the ledger's streams that are written, for the same reason."""
    today: Today | None = None
    """The windows of the day that the server probably has, for the same reason."""
    day_at: Callable[[float], Day] = field(default=UTC_CALENDAR.day_at, repr=False)
    """The calendar day of a time in Unix seconds."""
    planned: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The `plans.Planned` of each of the worker's purchases, as far as the worker has them."""
    books: str = field(init=False, repr=False)
    """The start of every key of the books: no key itself, but it names their hash slot."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "books", f"{self.prefix}{{books}}:")

    @property
    def schema(self) -> str:
        return f"{self.prefix}schema"

    @property
    def probe(self) -> str:
        """A key that never exists for longer than a script runs."""
        return f"{self.prefix}probe"

    @property
    def fence(self) -> str:
        """A key that is written to wait for replicas."""
        return f"{self.prefix}fence"

    def lru_index(self, index: LruIndex = "images") -> Sequence[str]:
        """The keys of an LRU index in the order of `shared/lru_index.lua`."""
        return _lru_index(self.prefix, index)

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

    @property
    def workers(self) -> str:
        return f"{self.books}workers"

    @property
    def running_totals(self) -> str:
        return f"{self.books}running-totals"

    def open_purchases(self, worker: str) -> str:
        return f"{self.books}open:{worker}"

    def reserved(self, worker: str) -> str:
        return f"{self.books}reserved:{worker}"

    def bucket(self, subject: str, unit: str) -> str:
        return f"{self.books}bucket:{subject}:{unit}"

    def window(self, subject: str, name: str) -> str:
        return f"{self.books}window:{subject}:{name}"

    def calendar_windows(self, subject: str, *periods: str) -> Sequence[str]:
        """A subject's windows of such periods, by default of all, in the two days."""
        return _calendar_windows(self.books, self.calendar, subject, periods or CALENDAR_PERIODS)

    def account(self, account: str) -> list[str]:
        """An account's bucket and queue, and the window of its open purchases."""
        window = self.window(f"upstream:{account}", "concurrency")
        return [
            *(f"{self.books}queue:{part}:{account}" for part in ("account", "keys", "heads")),
            window,
        ]

    def slow_workers(self, account: str) -> str:
        return f"{self.books}queue:slow:{account}"

    def taken_turns(self, account: str, worker: str) -> str:
        return f"{self.books}queue:taken:{account}:{worker}"

    @property
    def asked_often(self) -> str:
        """A key that never exists. Scripts that have asked `MAX_ASKED` times get it declared."""
        return f"{self.books}asked-often"

    def tickets(self, account: str, key: str) -> str:
        return f"{self.books}queue:tickets:{account}:{key}"

    def ledger_days(self, kind: str) -> str:
        """`kind` is `charged` or `free`."""
        return f"{self.books}ledger-days:{kind}"

    def ledger_stream(self, kind: str, day: str) -> str:
        return f"{self.books}ledger:{kind}:{day}"

    @property
    def ledger(self) -> list[str]:
        """The ledger's hash, and the days that have a stream."""
        return [f"{self.books}ledger", self.ledger_days("charged"), self.ledger_days("free")]

    def ledger_end(self, *kinds: str) -> Sequence[str]:
        """The keys that an append of records of these kinds touches."""
        return _ledger_end(self, kinds)

    @property
    def refusals(self) -> list[str]:
        return [f"{self.books}refusals", f"{self.books}refusal-rows"]

    @property
    def writers(self) -> list[str]:
        return [f"{self.books}writers", f"{self.books}writer-numbers"]

    @property
    def totals_checkpoint(self) -> str:
        return f"{self.books}totals-checkpoint"

    def totals(self, period: str) -> str:
        return f"{self.books}totals:{period}"

    def full_totals(self, period: str) -> str:
        return f"{self.books}totals-full:{period}"

    def totals_periods(self, kind: str) -> str:
        return f"{self.books}totals-periods:{kind}"

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


# Cached, as the two below: every purchase needs the same names.
@lru_cache(maxsize=16)
def _lru_index(prefix: str, index: LruIndex) -> tuple[str, ...]:
    start = f"{prefix}{{lru}}:" + ("" if index == "images" else f"{index}:")
    return tuple(start + part for part in ("used", "expires", "sizes", "total"))


@lru_cache(maxsize=16)
def _ledger_end(keys: Keys, kinds: tuple[str, ...]) -> tuple[str, ...]:
    streams = (keys.ledger_stream(kind, day) for kind in kinds for day in keys.days)
    return (*keys.ledger, *streams)


@lru_cache(maxsize=4096)
def _calendar_windows(
    books: str, calendar: str, subject: str, periods: tuple[str, ...]
) -> tuple[str, ...]:
    names = _window_names(calendar)
    return tuple(
        f"{books}window:{subject}:{name}" for period in periods for name in names.get(period, ())
    )


@lru_cache(maxsize=8)
def _window_names(calendar: str) -> Mapping[str, tuple[str, ...]]:
    """The names of the windows by period. The week and the month of both days may be one."""
    names: dict[str, dict[str, None]] = {}
    for name in calendar.split()[1::2]:
        names.setdefault(name.partition(":")[0], {})[name] = None
    return {period: tuple(found) for period, found in names.items()}


def match_pattern(key: str) -> str:
    """A pattern for `SCAN`: the name of a key with `*` for the part that differs."""
    return _GLOB_CHARACTERS.sub(r"\\\g<0>", key)
