"""A gateway of 4 workers with every series that it may have: what a scrape takes, as JSON.

It has 10,000 keys in 100 teams, and 100 models. `python -m tests.metrics.full_gateway` is a process
of its own, because prometheus_client's multiprocess mode is a matter of the whole process.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final

from gateway.api.scraping import GZIP_LEVEL
from gateway.billing.limit_gauges import GaugeValues
from gateway.metrics import MAX_KEYS, Metrics
from gateway.store.commands import RunningTotal
from gateway.tuning import resident_bytes, tune_process
from tests.processor import processor_seconds

WORKERS: Final = 4
KEYS: Final = [f"key-of-a-colleague-{number:05}" for number in range(10_000)]
TEAMS: Final = [f"team-{number:02}" for number in range(100)]
MODELS: Final = [f"image-model-{number:03}" for number in range(100)]
SIZES: Final = [f"{number}x1024" for number in range(10)]
QUALITIES: Final = ["low", "medium", "high", "auto"]
KINDS: Final = ["text_in", "cached_text_in", "image_in", "image_out", "text_out"]
REASONS: Final = ["usd_per_day", "images_per_minute", "invalid_value", "taken_down", "model", "key"]
LIMITS: Final = ["usd_per_day", "usd_per_month", "images_per_minute", "requests_per_minute"]


@dataclass(frozen=True)
class Measured:
    samples: int
    text_bytes: int
    gzip_bytes: int
    first_seconds: float
    seconds: float
    gzip_seconds: float
    memory_bytes: int
    """What the worker that is scraped keeps for the next scrape."""
    files_bytes: int


def bought(chance: Random) -> Any:
    """A purchase; most are of the oldest keys."""
    key = chance.randrange(chance.choice((MAX_KEYS, MAX_KEYS, len(KEYS))))
    return SimpleNamespace(
        key=KEYS[key],
        team=TEAMS[key % len(TEAMS)],
        model=chance.choice(MODELS),
        size=chance.choice(SIZES),
        quality=chance.choice(QUALITIES),
        outcome=chance.choice(("bought", "hit", "collapsed")),
        images=1,
        tokens=dict.fromkeys(KINDS, 5),
        cost_micros=16_000,
    )


async def fill(metrics: Metrics, purchases: int) -> None:
    upstream, chance = metrics.upstream.purchases_from("default"), Random(16)
    for _ in range(purchases):
        record = bought(chance)
        metrics.money.purchased(record)
        for limit in REASONS:
            metrics.requests.refused(record.key, limit)
            metrics.requests.shadowed(record.key, limit)
    for model, status in product(MODELS, range(400, 440)):
        metrics.requests.answered(
            endpoint="generations", model=model, status=status, outcome="failed", seconds=0.1
        )
        upstream.attempted(model, status=status, seconds=0.1)


def show_books(metrics: Metrics) -> None:
    subjects = [("everyone", ""), *product(["key"], KEYS[:MAX_KEYS]), *product(["team"], TEAMS)]
    names = [*subjects, *product(["model"], MODELS), *product(["cost_center"], TEAMS)]
    values = GaugeValues(
        {(*one, window): 1.25 for one, window in product(subjects, ("day", "week", "month"))},
        dict.fromkeys(subjects, 0.016),
        {(*one, limit): 100.0 for one, limit in product(subjects, LIMITS)},
        {(*one, limit): 0.123456 for one, limit in product(subjects, LIMITS)},
    )
    metrics.books.show_totals(
        {one: RunningTotal(7, 5, 3) for one in names}, dict.fromkeys(names, time.time())
    )
    metrics.books.show_values(values)
    metrics.books.show_verified({time.time(): True})


def copy_files(folder: Path) -> None:
    """As if all workers had counted the same."""
    own = f"_{os.getpid()}.db"
    for path, pid in product(list(folder.glob(f"*{own}")), range(1, WORKERS)):
        shutil.copy(path, folder / path.name.replace(own, f"_{pid}.db"))


def measure(metrics: Metrics, folder: Path) -> Measured:
    before = resident_bytes() or 0
    first_seconds = processor_seconds(metrics.render, best_of=1)
    text = metrics.render()
    memory_bytes = (resident_bytes() or 0) - before
    return Measured(
        samples=sum(not line.startswith(b"#") for line in text.splitlines()),
        text_bytes=len(text),
        gzip_bytes=len(gzip.compress(text, GZIP_LEVEL)),
        first_seconds=first_seconds,
        seconds=processor_seconds(metrics.render),
        gzip_seconds=processor_seconds(lambda: gzip.compress(text, GZIP_LEVEL)),
        memory_bytes=memory_bytes,
        files_bytes=sum(path.stat().st_blocks * 512 for path in folder.iterdir()),
    )


def main(purchases: int) -> None:
    today = datetime.now(UTC).date()
    folder, metrics = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), Metrics()
    metrics.use_policy(
        models=MODELS,
        sizes=SIZES,
        qualities=QUALITIES,
        prices_as_of=today,
        retiring_models=dict.fromkeys(MODELS, today),
    )
    metrics.use_keys(KEYS)
    asyncio.run(fill(metrics, purchases))
    copy_files(folder)
    show_books(metrics)
    tune_process()
    sys.stdout.write(json.dumps(vars(measure(metrics, folder))))


if __name__ == "__main__":
    main(7_000)
