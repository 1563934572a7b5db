"""The state and the memory of processes, from /proc and from the log."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.waiting import until


def living_children(pid: int) -> set[int]:
    """The running children of a process, without zombies."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if is_running(int(child))}


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_group(group: int) -> None:
    """`kill -9` of a process group; returns once none of it runs, so its ports are free."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    until(lambda: not _has_running(group))


def _has_running(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def children_of_threads(pid: int) -> set[int]:
    """The processes that any thread of a process has started, zombies included."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for each in threads for child in (each / "children").read_text().split()}


def resident_bytes(pid: int) -> int:
    """The memory of a process; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * resource.getpagesize()


def serving(log: Iterable[Mapping[str, Any]]) -> list[set[int]]:
    """The sets of workers that accepted connections, one after each change."""
    history: list[set[int]] = [set()]
    for line in log:
        if line["event"] == "worker_ready":
            history.append(history[-1] | {line["pid"]})
        elif line["event"] in ("worker_replaced", "worker_exited"):
            history.append(history[-1] - {line["pid"]})
    return history
