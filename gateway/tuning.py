"""Tunes Python and the C library for a worker: shorter pauses, fewer system calls for memory.
Also measures the worker's memory.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

SWITCH_SECONDS: Final = 0.0005
"""How long a thread that checks an image may keep the event loop waiting for the GIL. The loop
releases it with every write, and the default of 5 ms adds up."""

COLLECTOR_THRESHOLDS: Final = (5_000, 5, 5)
"""Containers made and not yet freed before a collection of the youngest generation; how many of
those before one of the second; how many of these before a full one, which Python 3.14 ignores.

No request leaves garbage (`tests/http/test_memory.py`), so the collector only bounds the memory of
a cycle that slips in. See `docs/decisions.md` for the measurements."""

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""Numbers of <malloc.h>."""

MAX_HEAP_BLOCK_BYTES: Final = 8 << 20
MAX_UNUSED_HEAP_BYTES: Final = 32 << 20


def resident_bytes() -> int | None:
    """The memory that this process has; None where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        return None
    return int(pages) * resource.getpagesize()


def tune_process() -> None:
    """To be called once, when everything is imported and wired."""
    # All objects of now stay until the end. A full collection that visits them takes 50 ms.
    gc.collect()
    gc.freeze()
    # Python makes no full collection before a quarter of the objects that the last one has left
    # are new. After this one there are none to wait for.
    gc.collect()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)
    # By default glibc returns the memory of each image to the system and asks for it again, page
    # by page: for a stream of 8 MB that took as long as everything else. Other C libraries have no
    # mallopt.
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, MAX_UNUSED_HEAP_BYTES)
