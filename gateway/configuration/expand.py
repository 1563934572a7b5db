"""Replaces `${NAME}` and `${NAME:-default}` in the values of a file.

The only place where the environment enters the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_REFERENCE: Final = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", re.ASCII)


class ConfigError(Exception):
    """The configuration cannot be used.

    The message has one line per fault, which names the file, the key and the remedy.
    """


def expand(value: Any, environ: Mapping[str, str], *, where: str) -> Any:
    """The value with every reference in its strings replaced. Raises `ConfigError`.

    `where` is the file and key of `value`, for the message.
    """
    if isinstance(value, dict):
        return {k: expand(item, environ, where=f"{where}.{k}") for k, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environ, where=f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        return _expand_text(value, environ, where)
    return value


def _expand_text(text: str, environ: Mapping[str, str], where: str) -> str:
    if "${" in _REFERENCE.sub("", text):
        raise ConfigError(f"{where}: expected ${{NAME}} or ${{NAME:-default}} after $.")

    def look_up(reference: re.Match[str]) -> str:
        name, default = reference["name"], reference["default"]
        if default is not None:
            return environ.get(name) or default  # as in a shell, also if the variable is empty
        if name not in environ:
            raise ConfigError(f"{where}: the environment variable {name} is not set.")
        return environ[name]

    # One pass: a reference in the value of a variable stays as it is.
    return _REFERENCE.sub(look_up, text)
