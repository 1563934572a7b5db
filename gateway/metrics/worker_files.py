"""The files in which prometheus_client keeps what each process counts, all in one folder.

What a worker has counted outlives it. Its files would stay for ever, more with every restart, so
the parent adds them to one file of all dead workers and removes them. A scrape reads the folder
meanwhile, in another process and without a lock: see `read_files`.

A file begins with two integers of four bytes: its length in use, and in the file of the dead the
process whose own file is about to be removed. Its entries follow: the length of a key, the key,
spaces up to a multiple of eight bytes, the value and a time, both doubles.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

SUMMED: Final = ("counter", "histogram")
"""The kinds of files whose values outlive their worker."""

HEADER_BYTES: Final = 8

_INTEGER: Final = Struct("=i")
_MAX_SECONDS: Final = 2.0
"""Of attempts to read the folder while workers end one after the other."""


@dataclass(frozen=True, slots=True)
class CountedFile:
    """The file of one process, or of all dead workers, as it was at one moment."""

    kind: str
    """`counter`, `histogram`, or `gauge_` and how the values of workers become one."""
    inode: int
    data: bytes

    @property
    def doubles(self) -> memoryview[float]:
        """The whole file as doubles."""
        return memoryview(self.data)[: len(self.data) // 8 * 8].cast("d")

    def entries(self, start: int = HEADER_BYTES) -> Iterator[tuple[bytes, int, int]]:
        """Each key from `start` on, which of the doubles is its value, and where the next begins.

        Ends early if the file is damaged.
        """
        used = min(_used_bytes(self.data), len(self.data))
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
        before = _dead_states(folder)
        files = _read_all(folder)
        # Otherwise a worker was added to the file of the dead meanwhile: it might be counted twice,
        # or not at all.
        if _dead_states(folder) == before or time.monotonic() > deadline:
            break
    for kind in SUMMED:
        if (dead := files.get(_dead_name(kind))) is not None:
            files.pop(f"{kind}_{_removed_pid(dead.data)}.db", None)
    return files


def retire_worker(folder: Path, pid: int) -> None:
    """Adds what a dead worker has counted to that of the others, and removes its files."""
    for kind in SUMMED:
        _add_to_dead(folder, kind, pid)
    for path in folder.glob(f"gauge_*_{pid}.db"):
        path.unlink(missing_ok=True)


def _add_to_dead(folder: Path, kind: str, pid: int) -> None:
    dead, file = folder / _dead_name(kind), folder / f"{kind}_{pid}.db"
    sums: dict[bytes, float] = {}
    for path in (dead, file):
        counted = _read(path)
        if counted is None:
            if path == file:
                return
            continue
        if path == dead and (removed := _removed_pid(counted.data)):
            (folder / f"{kind}_{removed}.db").unlink(missing_ok=True)  # it was not removed then
        doubles = counted.doubles
        for key, value, _ in counted.entries():
            sums[key] = sums.get(key, 0.0) + doubles[value]
    # In one step, so a reader finds the worker's amounts once: in the new file, which says that the
    # worker's own is about to be removed, or only in that.
    new = folder / f"{kind}_dead.new"
    new.write_bytes(_encode(sums, removed_pid=pid))
    new.replace(dead)
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


def _removed_pid(dead: bytes) -> int:
    """The worker whose amounts are in the file of the dead, and perhaps in its own too; 0: none."""
    return int(_INTEGER.unpack_from(dead, 4)[0])


def _dead_states(folder: Path) -> Sequence[tuple[int, int] | None]:
    """What changes when a worker is added to the file of the dead."""
    states: list[tuple[int, int] | None] = []
    for kind in SUMMED:
        try:
            stat = (folder / _dead_name(kind)).stat()
        except FileNotFoundError:
            states.append(None)
        else:
            states.append((stat.st_ino, stat.st_mtime_ns))
    return states


def _read_all(folder: Path) -> dict[str, CountedFile]:
    files = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, not paths
        if name.endswith(".db") and (counted := _read(folder / name)) is not None:
            files[name] = counted
    return files


def _read(path: Path) -> CountedFile | None:
    """The file's part in use; None if there is none, or if it has just been created."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        data = file.read(1 << 16)
        if len(data) < HEADER_BYTES:
            return None
        data += file.read(max(0, _used_bytes(data) - len(data)))
        kind = path.name.rpartition("_")[0]
        return CountedFile(kind, os.fstat(file.fileno()).st_ino, data)
    return None


def _used_bytes(data: bytes) -> int:
    return int(_INTEGER.unpack_from(data)[0])
