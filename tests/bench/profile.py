"""Where a worker's processor time goes, by part of the gateway and by package."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench import sampled
from tests.bench.cells import HIT_SMALL, PURCHASE_LARGE, PURCHASE_SMALL, Cell
from tests.bench.load import Failed, Target, measure, run_wrk
from tests.bench.results import Part
from tests.bench.servers import LIMITS, PURCHASE_LIMITS, Setup, run_gateway

CELLS: Final = (HIT_SMALL, PURCHASE_SMALL, PURCHASE_LARGE)
LEAST_SAMPLES: Final = 100


def profile(folder: Path, setups: Mapping[str, Setup], *, seconds: int) -> Iterator[Part]:
    """Profiles of a hit and of purchases, each of a gateway of its own.

    Raises `Failed` if the worker was interrupted too rarely to say anything.
    """
    print("profile …", file=sys.stderr)  # noqa: T201
    for number, cell in enumerate(CELLS):
        setup = replace(setups[cell.size], folder=folder / f"profile-{number}")
        setup.folder.mkdir()
        file = setup.folder / "samples.json"
        with run_gateway(
            setup,
            "sampled",
            setup.redis_url,
            module=sampled.__name__,
            environ={sampled.FILE: str(file)},
            limits=PURCHASE_LIMITS if cell.kind == "hit" else LIMITS,
        ) as gateway:
            yield Part(profiles={cell.name: _measure(gateway, cell, file, seconds=seconds)})


def _measure(gateway: Target, cell: Cell, file: Path, *, seconds: int) -> dict[str, float]:
    """Milliseconds of a request by place, the longest first."""
    run_wrk(gateway, cell, seconds=1)
    before = _read(file)
    worker_ms = measure(gateway, cell, seconds=seconds).worker_ms or 0.0
    samples = _read(file) - before
    if samples.total() < LEAST_SAMPLES:
        raise Failed(f"{cell.name}: a profile of {samples.total()} samples says nothing")
    return {place: count / samples.total() * worker_ms for place, count in samples.most_common()}


def _read(file: Path) -> Counter[str]:
    return Counter(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else Counter()
