"""Which series a gateway has: decided once, for all its workers and for their replacements.

Labels are bounded one by one, but 500 keys, 100 models and 7 kinds of tokens would make 350,000
series. So each family has a bound, and the first series to be counted get its room, until the
gateway ends. They are the lines of one file, to which workers append: its order decides, so no
worker waits for another.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

import orjson

FILE: Final = "series"


class Admission:
    """The series that have been admitted, by family."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is that of all workers of a gateway; None: there is only this process."""
        self._path = None if folder is None else folder / FILE
        self._lock = Lock()  # a thread reloads the policy
        self._bounds: dict[str, int] = {}
        self._admitted: dict[str, set[tuple[str, ...]]] = {}
        self._read_to = 0

    def bound(self, family: str, most: int) -> None:
        """Bounds the series of a family, before the first of them is asked for."""
        self._bounds[family] = most
        self._admitted[family] = set()

    def admits(self, family: str, labels: tuple[str, ...]) -> bool:
        """Whether a series has room. If so, it has room in every worker from now on."""
        with self._lock:
            admitted, most = self._admitted[family], self._bounds[family]
            if labels in admitted or len(admitted) >= most:
                return labels in admitted
            if self._path is None:
                admitted.add(labels)
                return True
            # A full disk refuses the series for now: its amounts are counted as `other`.
            with suppress(OSError):
                self._read(self._path)
                if labels not in admitted and len(admitted) < most:
                    self._append(self._path, family, labels)
                    self._read(self._path)
            return labels in admitted

    def _append(self, path: Path, family: str, labels: tuple[str, ...]) -> None:
        line = orjson.dumps([family, *labels], option=orjson.OPT_APPEND_NEWLINE)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)  # one write is not mixed with those of other workers
        finally:
            os.close(file)

    def _read(self, path: Path) -> None:
        """Reads what workers have appended since the last time."""
        try:
            with path.open("rb") as file:
                file.seek(self._read_to)
                new = file.read()
        except FileNotFoundError:
            return
        complete = new[: new.rfind(b"\n") + 1]
        self._read_to += len(complete)
        for line in complete.splitlines():
            # A disk that was full for a moment may have left half a line.
            with suppress(orjson.JSONDecodeError):
                family, *labels = orjson.loads(line)
                admitted = self._admitted.get(family)
                if admitted is not None and len(admitted) < self._bounds[family]:
                    admitted.add(tuple(labels))
