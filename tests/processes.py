"""The state of processes, from /proc."""

from __future__ import annotations

from pathlib import Path


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
