"""A gateway whose worker counts where its processor time goes.

    SAMPLES=FILE python -m tests.bench.sampled serve --config …

The kernel interrupts the worker each time it has used some milliseconds. Python handles that before
its next instruction, so what a function in C takes counts for the frame that called it, and what
the event loop itself takes for the callback that follows. The time of other threads counts for what
the main thread does meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

FILE: Final = "SAMPLES"
"""The environment variable that names the file for the counts."""
INTERVAL_SECONDS: Final = 0.001
"""The kernel rounds it up to its own ticks, usually 4 ms."""
WRITE_EVERY: Final = 25
"""Samples."""
LOOP: Final = "event loop"
"""No callback runs."""
_RUNNERS: Final = ("asyncio/runners.py", "gateway/process/worker.py")
_GATEWAY: Final = Path(__file__).parents[2] / "gateway"


class Samples:
    """The counts of one process, which a file repeats."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts = Counter[str]()
        self._places: dict[CodeType, str] = {}

    def start(self) -> None:
        """Counts from now on, in this process and its main thread."""
        signal.signal(signal.SIGPROF, self._count)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)

    def _count(self, _number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        code = frame.f_code
        place = self._places.get(code)
        if place is None:
            place = self._places[code] = place_of(code.co_filename)
        self._counts[place] += 1
        if self._counts.total() % WRITE_EVERY == 0:
            self._file.write_text(json.dumps(self._counts), encoding="utf-8")


def place_of(file: str) -> str:
    """The part of the gateway, or the package, that a source file belongs to."""
    if file.endswith(_RUNNERS):
        return LOOP
    path = Path(file)
    if path.is_relative_to(_GATEWAY):
        inner = path.relative_to(_GATEWAY)
        return f"gateway/{inner.parts[0]}" if len(inner.parts) > 1 else "gateway"
    for packages in ("site-packages", "dist-packages"):
        if packages in path.parts:
            return path.parts[path.parts.index(packages) + 1].removesuffix(".py")
    return "standard library"


if __name__ == "__main__":
    from gateway.__main__ import main  # which prepares this process

    os.register_at_fork(after_in_child=Samples(Path(os.environ[FILE])).start)
    main()
