"""Whether a hit takes longer in a store with very many entries than in one with a thousand.

Two gateways buy the same thousand images, and are measured in turn with hits on them that ask the
store. The store of one gets more entries between the measurements.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway.configuration.settings import Settings
from tests.bench.cells import HIT_SMALL, PURCHASE_SMALL
from tests.bench.filling import fill_entries
from tests.bench.goals import SCALE
from tests.bench.load import Target, buy_known, measure
from tests.bench.processor_time import until_idle
from tests.bench.results import Measurement, Part, Servers, median, ratio
from tests.bench.servers import Setup, run_gateway
from tests.gateways import make_settings

FEWEST: Final = replace(HIT_SMALL, images=1000)
STEPS: Final = (10_000, 100_000)
FEW, MANY = "few", "many"
ROUND_SECONDS: Final = 2


def scale(folder: Path, setup: Setup, *, entries: int, rounds: int) -> Iterator[Part]:
    """A curve and a figure for each store. In the Redis of `setup`, each gateway has a database."""
    redis = setup.redis_url.rpartition("/")[0]
    stores: Mapping[str, Sequence[str | None]] = {
        "Redis": (f"{redis}/1", f"{redis}/2"),
        "embedded store": (None, None),
    }
    steps = [FEWEST.images, *(step for step in STEPS if step < entries), entries]
    for store, urls in stores.items():
        own = replace(setup, folder=folder / f"entries-{store.replace(' ', '-')}")
        own.folder.mkdir()
        many_settings = make_settings(own.folder / MANY / "data", setup.upstream, urls[1])
        with ExitStack() as stack:
            few, many = (
                stack.enter_context(run_gateway(own, name, url))
                for name, url in zip((FEW, MANY), urls, strict=True)
            )
            for target in (few, many):
                asyncio.run(buy_known(target, FEWEST.images))
            yield _measure_steps(store, (few, many), many_settings, steps, rounds=rounds)


def _measure_steps(
    store: str, targets: Sequence[Target], filled: Settings, steps: Sequence[int], *, rounds: int
) -> Part:
    points: list[tuple[float, Servers]] = []
    for before, step in zip([FEWEST.images, *steps], steps, strict=False):
        print(f"{step:,} entries, {store} …", file=sys.stderr)  # noqa: T201
        fill_entries(filled, step - before)
        until_idle(targets[1].processes)
        _hits(targets)  # caches fill
        pairs = [_hits(targets) for _ in range(rounds)]
        hits = median([pair[1] for pair in pairs])
        purchase = measure(targets[1], PURCHASE_SMALL, seconds=ROUND_SECONDS)
        points.append((step, {"hit": hits, "purchase": purchase}))
    goal = SCALE[store]
    goal = replace(goal, name=goal.name.format(entries=steps[-1]))
    return Part(
        figures=(goal.figure(_median_ratio(pairs)),), curves={f"entries, {store}": tuple(points)}
    )


def _hits(targets: Sequence[Target]) -> list[Measurement]:
    return [measure(target, FEWEST, seconds=ROUND_SECONDS) for target in targets]


def _median_ratio(pairs: Sequence[Sequence[Measurement]]) -> float | None:
    """Of the processor time of a hit, in the full store to that in the other."""
    ratios = [ratio(many.processor_ms, few.processor_ms) for few, many in pairs]
    known = [each for each in ratios if each is not None]
    return statistics.median(known) if known else None
