"""Parses a long text of YAML once in a process, for tests that run many commands and gateways.

The parser is slow, and every command and every worker reads the shipped `models.yaml`: that took
two thirds of a command. Only the parser's values are kept; what is made of them is made anew.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from gateway.configuration import files

CONFIG = Path(__file__).parent.parent / "config"
LONG = 2_000
"""Shorter texts, of which Hypothesis makes many, are parsed each time."""

_parse = files._Loader.get_single_data
_parsed: dict[tuple[type, str], Any] = {}


def _get_single_data(loader: Any) -> Any:
    if len(loader.buffer) < LONG:
        return _parse(loader)
    key = (type(loader), loader.buffer)
    if key not in _parsed:
        _parsed[key] = _parse(loader)
    return deepcopy(_parsed[key])


def parse_yaml_once() -> None:
    """From now on, in this process and in its forks."""
    files._Loader.get_single_data = _get_single_data  # type: ignore[method-assign]


def parse_shipped_yaml() -> None:
    """So that each fork of this process has the values."""
    for name in ("gateway.yaml", "models.yaml"):
        files.read_config(CONFIG / name, {})
