"""The numbers behind the series, each in the file of its process, or in memory.

prometheus_client writes each amount behind a lock and a comparison of process ids: 1 µs, and a
purchase adds to about twenty series. Here it is one addition in mapped memory, 0.1 µs. So amounts
are written at once, and none is lost with a worker that is killed.

What makes that right: only the thread of the event loop adds to a series, or one thread for it (as
`config_reload_failures_total`, whose thread is awaited). A series may be created in any thread. A
fork is noticed when it happens, not at each amount.

`tests/test_private_parts.py` fails when prometheus_client changes the class that this one replaces.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Final
from weakref import WeakSet

from prometheus_client.mmap_dict import mmap_key

from gateway.metrics.worker_files import ReservedFile

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

_creating = Lock()
_files: dict[str, ReservedFile] = {}
"""Those of this process, by their path."""
_in_files: WeakSet[Value] = WeakSet()


class Value:
    """A number, in the place of prometheus_client's `ValueClass`.

    What it writes is complete for a reader in another process: a double is stored in one step.
    """

    __slots__ = ("__weakref__", "_at", "_cells", "_key", "_kind")

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: object,
    ) -> None:
        """Raises `OSError` if the disk has no room for another series."""
        self._kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self._key: str = mmap_key(metric_name, name, labelnames, labelvalues, help_text)  # type: ignore[arg-type]
        self.use_memory()
        if FOLDER in os.environ:
            with _creating:
                self.use_file()
                _in_files.add(self)

    def use_memory(self) -> None:
        """Begins at 0, in this process only."""
        self._cells: memoryview[float] | array[float] = array("d", (0.0, 0.0))
        self._at = 0

    def use_file(self) -> None:
        """Goes on with the file of this process. Raises `OSError` if the disk has no room."""
        path = f"{os.environ[FOLDER]}/{self._kind}_{os.getpid()}.db"
        if (file := _files.get(path)) is None:
            file = _files[path] = ReservedFile(path)
        self._cells, self._at = file.place(self._key)

    def inc(self, amount: float = 1) -> None:
        self._cells[self._at] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """`timestamp` is that of a gauge of which the latest value counts."""
        self._cells[self._at] = value
        if timestamp is not None:
            self._cells[self._at + 1] = timestamp

    def get(self) -> float:
        return self._cells[self._at]

    def set_exemplar(self, _: object) -> None:
        """There are no exemplars."""

    def get_exemplar(self) -> None:
        """There are no exemplars."""


def _leave_files_of_parent() -> None:
    """Gives a forked process files of its own. Its parent goes on writing to the old ones."""
    global _creating  # noqa: PLW0603 - a thread of the parent may have held the lock
    _creating = Lock()
    _files.clear()
    for value in tuple(_in_files):
        value.use_memory()
        with suppress(OSError, KeyError):  # no room, or no folder any more
            value.use_file()


os.register_at_fork(after_in_child=_leave_files_of_parent)
