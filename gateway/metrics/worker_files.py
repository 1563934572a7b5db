"""The files in which prometheus_client keeps what each process counts, all in one folder.

What a worker has counted outlives it. Its files would stay for ever, more with every restart, so
the parent adds them to one file of all dead workers and removes them. A scrape reads the folder
meanwhile, in another process and without a lock: see `read_files`.

A file begins with two integers of four bytes: its length in use, and in the file of the dead the
process whose own file is about to be removed. Its entries follow: the length of a key, the key,
spaces up to a multiple of eight bytes, the value and a time, both doubles.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

from prometheus_client.mmap_dict import MmapedDict

SUMMED: Final = ("counter", "histogram")
"""The kinds of files whose values outlive their worker."""

HEADER_BYTES: Final = 8

INITIAL_BYTES: Final = 65_536
"""Of a file; it doubles when it is full."""

_INTEGER: Final = Struct("=i")
_MAX_SECONDS: Final = 2.0
"""Of attempts to read the folder while workers end one after the other."""


class ReservedFile(MmapedDict):
    """prometheus_client's file, with its room reserved on the disk before it is mapped.

    Its own is sparse: on a full disk, the first write to a new page of it kills the process.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Raises `OSError` if there is no room."""
        if not read_mode and (not os.path.exists(filename) or not os.path.getsize(filename)):  # noqa: PTH110, PTH202
            with open(filename, "ab") as file:  # noqa: PTH123
                os.posix_fallocate(file.fileno(), 0, INITIAL_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        self._doubles = memoryview(self._m).cast("d")

    def _init_value(self, key: str) -> None:
        """Raises `OSError` if there is no room for another key."""
        # Its length, padding of up to eight bytes, and two doubles.
        end = self._used + 4 + len(key.encode()) + 8 + 16
        if end > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def place(self, key: str) -> tuple[memoryview[float], int]:
        """The file as doubles, and which of them is the value of this key; its time follows.

        They stay valid when the file grows: it is mapped again, and both mappings show it. Raises
        `OSError` if there is no room for another key.
        """
        if key not in self._positions:
            self._init_value(key)
        if self._doubles.obj is not self._m:
            self._doubles = memoryview(self._m).cast("d")
        return self._doubles, self._positions[key] // 8


@dataclass(frozen=True, slots=True)
class CountedFile:
    """The file of one process, or of all dead workers."""

    kind: str
    """`counter`, `histogram`, or `gauge_` and how the values of workers become one."""
    inode: int
    removed_pid: int
    """Of the file of the dead: the worker whose amounts it has, and whose own file may still be
    there; 0: none."""
    data: mmap.mmap

    @property
    def doubles(self) -> memoryview[float]:
        """The whole file as doubles."""
        return memoryview(self.data)[: len(self.data) // 8 * 8].cast("d")

    def entries(self, start: int = HEADER_BYTES) -> Iterator[tuple[bytes, int, int]]:
        """Each key from `start` on, which of the doubles is its value, and where the next begins.

        Ends early if the file is damaged.
        """
        used = min(int(_INTEGER.unpack_from(self.data)[0]), len(self.data))
        position = start
        while position + 4 <= used:
            (length,) = _INTEGER.unpack_from(self.data, position)
            end = position + 4 + length
            value = end + 8 - end % 8
            if length <= 0 or value + 16 > used:
                return
            yield self.data[position + 4 : end], value // 8, value + 16
            position = value + 16


def read_files(folder: Path) -> Mapping[str, CountedFile]:
    """All files by name, as of one moment: each amount of a dead worker is in one of them."""
    deadline = time.monotonic() + _MAX_SECONDS
    while True:
        dead = _read_all(folder, map(_dead_name, SUMMED))
        files = _read_all(folder, os.listdir(folder)) | dead  # noqa: PTH208 - names, not paths
        # Otherwise a worker was added to the file of the dead meanwhile: it might be counted twice,
        # or not at all. The file that is mapped keeps its inode from being used again.
        now = _read_all(folder, map(_dead_name, SUMMED))
        if _states(now) == _states(dead) or time.monotonic() > deadline:
            break
    for one in dead.values():
        files.pop(f"{one.kind}_{one.removed_pid}.db", None)
    return files


def read_gauges(folder: Path, kind: str) -> Iterator[tuple[bytes, float]]:
    """The key and the value of each gauge of a kind, of every worker."""
    for path in sorted(folder.glob(f"{kind}_*.db")):
        if (file := _read(path)) is not None:
            doubles = file.doubles
            for key, value, _ in file.entries():
                yield key, doubles[value]


def retire_worker(folder: Path, pid: int) -> None:
    """Adds what a dead worker has counted to that of the others, and removes its files."""
    # The gauges first: they must go also if a full disk keeps the counters from being added.
    for path in folder.glob(f"gauge_*_{pid}.db"):
        path.unlink(missing_ok=True)
    for kind in SUMMED:
        _add_to_dead(folder, kind, pid)


def _add_to_dead(folder: Path, kind: str, pid: int) -> None:
    dead, file = folder / _dead_name(kind), folder / f"{kind}_{pid}.db"
    sums: dict[bytes, float] = {}
    for path in (dead, file):
        counted = _read(path)
        if counted is None:
            if path == file:
                return
            continue
        if counted.removed_pid:  # it was not removed then
            (folder / f"{kind}_{counted.removed_pid}.db").unlink(missing_ok=True)
        doubles = counted.doubles
        for key, value, _ in counted.entries():
            sums[key] = sums.get(key, 0.0) + doubles[value]
    # In one step, so a reader finds the worker's amounts once: in the new file, which says that the
    # worker's own is about to be removed, or only in that.
    new = folder / f"{kind}_dead.new"
    try:
        new.write_bytes(_encode(sums, removed_pid=pid))
        new.replace(dead)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    file.unlink()
    with dead.open("r+b") as changed:
        changed.seek(4)
        changed.write(_INTEGER.pack(0))


def _encode(values: Mapping[bytes, float], *, removed_pid: int) -> bytes:
    parts = [b""]
    for key, value in values.items():
        padding = b" " * (8 - (len(key) + 4) % 8)
        parts.append(_INTEGER.pack(len(key)) + key + padding + Struct("=dd").pack(value, 0.0))
    entries = b"".join(parts)
    return _INTEGER.pack(HEADER_BYTES + len(entries)) + _INTEGER.pack(removed_pid) + entries


def _dead_name(kind: str) -> str:
    return f"{kind}_dead.db"


def _states(dead: Mapping[str, CountedFile]) -> Sequence[tuple[str, int, int]]:
    """What changes when a worker is added to the files of the dead."""
    return [(name, one.inode, one.removed_pid) for name, one in dead.items()]


def _read_all(folder: Path, names: Iterable[str]) -> dict[str, CountedFile]:
    found = ((name, _read(folder / name)) for name in sorted(names) if name.endswith(".db"))
    return {name: one for name, one in found if one is not None}


def _read(path: Path) -> CountedFile | None:
    """The file; None if there is none, or if it has just been created."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        stat = os.fstat(file.fileno())
        if stat.st_size >= HEADER_BYTES:
            # Mapped, because the files of many workers are many megabytes.
            data = mmap.mmap(file.fileno(), stat.st_size, access=mmap.ACCESS_READ)
            removed_pid = int(_INTEGER.unpack_from(data, 4)[0])
            return CountedFile(path.name.rpartition("_")[0], stat.st_ino, removed_pid, data)
    return None
