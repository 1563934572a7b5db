"""Replaces `${NAME}` in the values of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_REFERENCE: Final = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", re.ASCII)


class ConfigError(Exception):
    """The configuration cannot be used. The message names file, key and cure, a line a fault."""


def _expand(value: Any, environ: Mapping[str, str], where: str) -> Any:
    """The same value with every `${NAME}` in its texts replaced."""
    if isinstance(value, dict):
        return {key: _expand(item, environ, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, environ, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        return _expand_text(value, environ, where)
    return value


def _expand_text(text: str, environ: Mapping[str, str], where: str) -> str:
    """As in a shell: an empty variable has the default too. What is put in is not read again."""
    if "${" in _REFERENCE.sub("", text):
        raise ConfigError(f"{where}: expected ${{NAME}} or ${{NAME:-default}} after $.")

    def look_up(reference: re.Match[str]) -> str:
        name, default = reference["name"], reference["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            raise ConfigError(f"{where}: the environment variable {name} is not set.")
        return environ[name]

    return _REFERENCE.sub(look_up, text)
