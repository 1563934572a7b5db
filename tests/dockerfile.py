"""Reads a Dockerfile's stages and instructions. Supports only the syntax that ours uses."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """The lines from one FROM to the next."""

    base: str
    name: str | None
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Each instruction with its arguments, in order."""

    def all(self, instruction: str) -> list[str]:
        """The arguments of each line with this instruction."""
        return [rest for word, rest in self.lines if word == instruction]

    def one(self, instruction: str) -> str:
        """The arguments of the only line with this instruction."""
        (rest,) = self.all(instruction)
        return rest

    def command(self, instruction: str) -> list[str]:
        """The words of the only line, a JSON list, which runs without a shell."""
        words: list[str] = json.loads(self.one(instruction))
        return words

    def environment(self) -> dict[str, str]:
        """The variables that the stage sets."""
        pairs = (pair for rest in self.all("ENV") for pair in shlex.split(rest))
        return dict(pair.split("=", 1) for pair in pairs)

    def healthcheck(self) -> list[str]:
        _, found, command = self.one("HEALTHCHECK").partition("CMD ")
        assert found, "HEALTHCHECK without CMD"
        words: list[str] = json.loads(command)
        return words


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile. ARGs before the first FROM are expanded in their bases."""
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
