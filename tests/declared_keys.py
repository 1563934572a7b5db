"""Compares the keys that scripts touch on a server with the keys that they declare.

`MONITOR` shows each script with its declared keys, and then each command that the script executes.
So this does not rely on any code of the gateway.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import redis

from gateway.store.redis.scripts import SCRIPTS
from tests.waiting import until

NAMES: Final = {script.sha: name for name, script in SCRIPTS.items()}

_LINE: Final = re.compile(rb'\d+\.\d+ \[\d+ (lua|[^\]]+)\] "([^"]+)"')

_ARGUMENT: Final = re.compile(rb' "((?:[^"\\]|\\.)*)"')

_END: Final = "the end of what is monitored"


class Use(NamedTuple):
    """A use of a key that the script did not declare."""

    script: str
    command: str
    key: str


@dataclass
class Executed:
    """What a server has executed. Scripts are named by their file, or else by their SHA-1."""

    scripts: Counter[str] = field(default_factory=Counter)
    undeclared: set[Use] = field(default_factory=set)


@contextmanager
def monitored(url: str, file: Path) -> Iterator[Executed]:
    """Records what the server executes within this context. The result is complete on exit."""
    executed = Executed()
    address = urlsplit(url)
    command = ["redis-cli", "-h", str(address.hostname), "-p", str(address.port), "monitor"]
    with file.open("wb") as output, redis.Redis.from_url(url) as client:
        process = subprocess.Popen(command, stdout=output)
        try:
            until(lambda: file.read_bytes().startswith(b"OK"))
            yield executed
            client.echo(_END)
            until(lambda: _END.encode() in file.read_bytes())
            commands = client.command()
        finally:
            process.terminate()
            process.wait()
    with file.open("rb") as lines:
        examine(lines, executed, commands)


def examine(lines: Iterable[bytes], executed: Executed, commands: Mapping[str, Any]) -> None:
    """Adds what lines of `MONITOR` show; `commands` is the server's reply to `COMMAND`."""
    script, declared = "", frozenset[bytes]()
    for line in lines:
        if not (found := _LINE.match(line)):
            continue
        client, name = found[1], found[2].decode()
        if client != b"lua":
            if name.upper() in ("EVALSHA", "EVAL"):
                sha, count = _arguments(line, found.end(), 2)
                declared = frozenset(_arguments(line, found.end(), 2 + int(count))[2:])
                script = NAMES.get(sha.decode(), sha.decode()) if name == "EVALSHA" else name
                executed.scripts[script] += 1
        elif (facts := commands[name.lower()])["first_key_pos"]:
            first, last, step = (facts[each] for each in _POSITIONS)
            arguments = _arguments(line, found.end(), last if last > 0 else None)
            for key in arguments[first - 1 :: step]:
                if key not in declared:
                    executed.undeclared.add(Use(script, name, key.decode(errors="replace")))


_POSITIONS: Final = ("first_key_pos", "last_key_pos", "step_count")


def _arguments(line: bytes, at: int, most: int | None) -> list[bytes]:
    """Up to `most` arguments after the name of a command, in quoted form."""
    found: list[bytes] = []
    while (most is None or len(found) < most) and (argument := _ARGUMENT.match(line, at)):
        found.append(argument[1])
        at = argument.end()
    return found
