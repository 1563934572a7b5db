"""What a worker asks of Python and of the C library, once all is imported and wired."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

SWITCH_SECONDS: Final = 0.0005
"""How long a thread that checks an image may keep the loop waiting for Python; the usual 5 ms
add up, because the loop lets go of it with every write."""

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""As <malloc.h> numbers them."""

MAX_HEAP_BLOCK_BYTES: Final = 8 << 20
MAX_KEPT_BYTES: Final = 32 << 20


def tune_process() -> None:
    """Fewer stops of the event loop, and fewer trips to the system for memory."""
    _spare_the_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    _keep_freed_memory()


def _spare_the_collector() -> None:
    """What was imported and wired stays: walking it again and again took 37 ms each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _keep_freed_memory() -> None:
    """What one image gives back serves the next one.

    The C library would hand it to the system and ask for it again, page by page: for a stream of
    8 MB that took as long as all the rest. Elsewhere than in glibc this does nothing.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, MAX_KEPT_BYTES)
