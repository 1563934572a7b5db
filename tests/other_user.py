"""The command line as another user: `python -m tests.other_user UID GID UMASK WORDS…`, as root."""

from __future__ import annotations

# What a command imports late: the user may not reach the folder of the interpreter.
import encodings.ascii
import encodings.idna
import encodings.latin_1  # noqa: F401
import os
import stringprep  # noqa: F401
import sys
import zoneinfo  # noqa: F401

import rich.table  # noqa: F401

import gateway.__main__  # first: it sets the folder of the metrics
from gateway.cli.main import cli, imported

for command in cli.commands.values():
    imported(command)
uid, gid, umask, *words = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
os.umask(int(umask, 8))
sys.argv[1:] = words
gateway.__main__.main()
