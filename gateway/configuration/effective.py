"""The settings that hold, and where each comes from. Secrets are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import SecretStr

from gateway.configuration.expand import Expanded
from gateway.configuration.settings import Section, Settings

MASKED: Final = "***"

Source = Literal["default", "file", "environment", "secret file"]


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One setting."""

    key: str
    value: Any
    """As in JSON; `***` for a secret, and for everything that a secret file is a part of."""
    source: Source
    origin: str | None
    """The files or variables that the value is from; None for a default."""


def effective_settings(
    settings: Settings, values: Expanded, *, file: Path
) -> Iterator[EffectiveSetting]:
    """Every setting in the order of the file; `values` are those that `file` has."""
    yield from _of_section(settings, values, file, ())


def _of_section(
    section: Section, values: Expanded, file: Path, path: tuple[str | int, ...]
) -> Iterator[EffectiveSetting]:
    shown = section.model_dump(mode="json")
    for key, name in zip(section.keys(), type(section).model_fields, strict=True):
        value, here = getattr(section, name), (*path, key)
        if isinstance(value, Section):
            yield from _of_section(value, values, file, here)
        elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
            for index, item in enumerate(value):
                yield from _of_section(item, values, file, (*here, index))
        # A row for each header: they may come from different places.
        elif isinstance(value, Mapping) and value:
            for name_there, item in value.items():
                masked = MASKED if _is_secret(item) else item
                yield _setting((*here, name_there), masked, values, file)
        else:
            yield _setting(here, MASKED if _is_secret(value) else shown[key], values, file)


def _setting(
    path: tuple[str | int, ...], value: Any, values: Expanded, file: Path
) -> EffectiveSetting:
    key = ".".join(map(str, path))
    if not _is_set(values.values, path):
        return EffectiveSetting(key, value, "default", None)
    origin = values.origin_of(path)
    if origin.files:
        return EffectiveSetting(key, MASKED, "secret file", ", ".join(origin.files))
    if origin.variables:
        return EffectiveSetting(key, value, "environment", ", ".join(origin.variables))
    return EffectiveSetting(key, value, "file", str(file))


def _is_set(values: Any, path: tuple[str | int, ...]) -> bool:
    for key in path:
        if isinstance(key, int):
            values = values[key] if isinstance(values, list) else None
        else:
            values = values.get(key) if isinstance(values, Mapping) else None
    return values not in (None, "")


def _is_secret(value: Any) -> bool:
    """A secret, or the keys of links."""
    if isinstance(value, tuple):
        return any(_is_secret(item) for item in value)
    return isinstance(value, SecretStr)
