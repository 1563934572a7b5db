"""What the operating system says of processes."""

from __future__ import annotations

from pathlib import Path


def living_children(pid: int) -> set[int]:
    """The children of a process that run; one that is dead and not waited for does not."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if is_running(int(child))}


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
