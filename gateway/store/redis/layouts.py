"""In which windows and buckets the purchases of a key count on a day, for `plans`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Final

import orjson

from gateway.store.commands import Counter
from gateway.store.redis.keys import Keys
from gateway.store.redis.windows import Today

MAX_LAYOUTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Window:
    """A window that a purchase may change."""

    key: int
    """The place of its name in `Layout.counter_keys`."""
    end: int
    """The place of its end among those of the day; -1: it has none."""
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity
class Layout:
    """Where all purchases with the same counters and subjects count on the same day."""

    counters: tuple[Counter, ...]
    subjects: tuple[str, ...]
    maxima: tuple[float, ...]
    """Of each counter; `inf`: it has no limit."""
    fields: tuple[tuple[str, str, str], ...]
    """Units, and the fields of a window with the spent and the reserved amount of each."""
    counter_keys: tuple[str, ...]
    """The buckets and windows."""
    places: tuple[int, ...]
    """Of each counter, where its name is in `counter_keys`; -1: it is not stored."""
    windows: tuple[Window, ...]
    buckets: tuple[int, ...]
    """Which counters are buckets with a limit."""
    counted: tuple[tuple[Window, tuple[int, ...]], ...]
    """Windows with those of their amounts that are counters."""
    ends: tuple[int, ...]
    """When the day begins, and when its day, week and month end, in Unix seconds."""
    consumptions: bytes
    scopes: bytes
    """Both as the journal has them, with `%d` for each amount."""

    @property
    def units(self) -> Sequence[str]:
        return [unit for unit, _, _ in self.fields]


@lru_cache(maxsize=MAX_LAYOUTS)
def lay_out(
    counters: tuple[Counter, ...],
    subjects: tuple[str, ...],
    units: tuple[str, ...],
    keys: Keys,
) -> Layout | None:
    """The layout on the day of `keys`. `units` are those that count in the windows of `subjects`.

    None if a script has to find the windows itself: the day is not known, or two counters are the
    same but for their maximum.
    """
    today = keys.today
    if today is None or len({counter[:3] for counter in counters}) < len(counters):
        return None
    ends = {period: i for i, (period, _, _) in enumerate(today.windows)}
    # A bucket without a limit is not stored.
    stored = {
        i: _key_of(counter, today, keys)
        for i, counter in enumerate(counters)
        if counter.period != "minute" or counter.maximum is not None
    }
    of_subjects = {
        keys.window(subject, name): i
        for subject in subjects
        for i, (_, name, _) in enumerate(today.windows)
    }
    places = {key: i for i, key in enumerate(dict.fromkeys((*stored.values(), *of_subjects)))}
    all_units = tuple(dict.fromkeys((*units, *(counter.unit for counter in counters))))
    buckets = tuple(i for i in stored if counters[i].period == "minute")
    counted: dict[str, list[int]] = {}
    for i, key in stored.items():
        if i not in buckets:
            counted.setdefault(key, []).append(i)
    ends_of = {key: ends.get(counters[of_key[0]].period, -1) for key, of_key in counted.items()}
    windows = {}
    for key, end in (ends_of | of_subjects).items():
        in_it = {counters[i].unit for i in counted.get(key, ())}
        in_it.update(units if key in of_subjects else ())
        windows[key] = Window(places[key], end, tuple(unit for unit in all_units if unit in in_it))
    return Layout(
        counters,
        subjects,
        tuple(inf if counter.maximum is None else counter.maximum for counter in counters),
        tuple((unit, f"{unit}:spent", f"{unit}:reserved") for unit in all_units),
        tuple(places),
        tuple(places.get(stored.get(i, ""), -1) for i in range(len(counters))),
        tuple(windows.values()),
        buckets,
        tuple((windows[key], tuple(of_window)) for key, of_window in counted.items()),
        (today.begins, *(end for _, _, end in today.windows)),
        b"[" + b",".join(_row(counter, today) for counter in counters) + b"]",
        _scopes(subjects, units, [(name, f"{end}000000") for _, name, end in today.windows]),
    )


def _key_of(counter: Counter, today: Today, keys: Keys) -> str:
    if counter.period == "minute":
        return keys.bucket(counter.subject, counter.unit)
    return keys.window(counter.subject, _window_of(counter, today)[0])


def _window_of(counter: Counter, today: Today) -> tuple[str, str]:
    """The name and the end of a counter's window, as the journal has them."""
    for period, name, end in today.windows:
        if period == counter.period:
            return name, f"{end}000000"
    return "" if counter.period == "minute" else counter.period, ""


def _row(counter: Counter, today: Today) -> bytes:
    """A consumption of a counter as the journal has it, with `%d` for its amount."""
    subject, unit, period, maximum = counter
    first = orjson.dumps([subject, unit, period, "" if maximum is None else str(maximum)])[:-1]
    last = orjson.dumps(_window_of(counter, today))[1:]
    return _escaped(first) + b',"%d",' + _escaped(last)


def _scopes(
    subjects: Sequence[str], units: Sequence[str], windows: Sequence[tuple[str, str]]
) -> bytes:
    amounts = b",".join(_escaped(orjson.dumps(unit)) + b':"%d"' for unit in units)
    return b'{"subjects":%b,"amounts":{%b},"windows":%b}' % (
        _escaped(orjson.dumps(subjects)),
        amounts,
        _escaped(orjson.dumps(windows)),
    )


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
