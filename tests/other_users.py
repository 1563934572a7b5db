"""Runs commands as other users of the machine, which needs root.

The interpreter of the tests may be in a folder that only root can enter. So a process of root
imports every command first, and a fork of it becomes the other user.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forks import run_fork

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@dataclass(frozen=True)
class User:
    uid: int
    gid: int


RANDOM = User(1_000_670_000, 0)
"""As OpenShift runs a container: without an entry in /etc/passwd, in the group of root."""


def run_as(
    user: User, folder: Path, *words: str, umask: int = 0o022, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs one command in `folder`, without a home folder that could be written."""
    with tempfile.TemporaryDirectory() as metrics:
        Path(metrics).chmod(0o777)
        return run_fork(
            *(str(user.uid), str(user.gid), f"{umask:o}", *words),
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/",
                "PROMETHEUS_MULTIPROC_DIR": metrics,
                **environment,
            },
            module="tests.other_user",
        )
