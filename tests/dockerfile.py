"""Reads a Dockerfile: its stages, and what each of them says. Knows no more than ours needs."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str | None
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Instruction and the rest of its line, in order."""

    def all(self, instruction: str) -> list[str]:
        """What every line with this instruction says."""
        return [rest for word, rest in self.lines if word == instruction]

    def one(self, instruction: str) -> str:
        """What the only line with this instruction says."""
        (rest,) = self.all(instruction)
        return rest

    def command(self, instruction: str) -> list[str]:
        """The words of the only line, written as a JSON list: no shell will read it."""
        words: list[str] = json.loads(self.one(instruction))
        return words

    def environment(self) -> dict[str, str]:
        """Every variable that it sets."""
        pairs = (pair for rest in self.all("ENV") for pair in shlex.split(rest))
        return dict(pair.split("=", 1) for pair in pairs)

    def healthcheck(self) -> list[str]:
        """The command of the health check."""
        _, found, command = self.one("HEALTHCHECK").partition("CMD ")
        assert found, "HEALTHCHECK without CMD"
        words: list[str] = json.loads(command)
        return words


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile, with its ARGs in front filled into their bases."""
    kept = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(kept).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(str.strip, whole.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
            stages.append(Stage(base, name or None))
        elif stages:
            stages[-1].lines.append((word, rest.strip()))
        else:
            assert word == "ARG", line
            name, _, default = rest.partition("=")
            arguments[name] = default
    return stages
