"""Runs commands as other users of the machine, which needs root.

The interpreter of the tests may be in a folder that only root can enter. So a process of root
imports every command first, and a fork of it becomes the other user.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import GENEROUS_SECONDS

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

PROGRAM = """
import encodings.ascii, encodings.idna, encodings.latin_1, os, stringprep, sys, zoneinfo
import rich.table
import gateway.__main__
from gateway.cli.main import cli, imported
for command in cli.commands.values():
    imported(command)
uid, gid, umask, *words = sys.argv[1:]
os.chdir(os.environ["FOLDER"])
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
os.umask(int(umask, 8))
sys.argv = ["gateway", *words]
gateway.__main__.main()
"""


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
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, str(user.uid), str(user.gid), f"{umask:o}", *words],
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/",
                "FOLDER": str(folder),
                "PROMETHEUS_MULTIPROC_DIR": metrics,
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=GENEROUS_SECONDS,
            check=False,
        )
