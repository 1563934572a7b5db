"""Messages about settings that are wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TypeGuard

from pydantic_core import ErrorDetails

from gateway.configuration.settings import Settings, _Section
from gateway.configuration.values import _Unshown

# ── saying what is wrong ────────────────────────────────────────────────────────────────────


def _describe(error: ErrorDetails) -> str:
    """One line about one fault: the key, what stands there, what belongs there."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key '{key}'. Did you mean '{_nearest_key(key)}'?"
    reason = _expected(error)
    is_shown = not isinstance(reason, _Unshown) and not isinstance(error["input"], dict)
    shown = f"{error['input']!r} is" if is_shown else "the value is"
    return f"{key}: {shown} not valid; expected {reason}."


def _expected(error: ErrorDetails) -> object:
    """What belongs there, in the words of a parser above or of pydantic."""
    if error["type"] == "model_type":
        return "a section with " + ", ".join(_section_at(error["loc"]).keys())
    context = error.get("ctx", {})
    return context.get("error") or context.get("expected") or error["msg"]


def _section_at(path: Sequence[int | str]) -> type[_Section]:
    """The section that stands at a path of keys."""
    section: type[_Section] = Settings
    for key in path:
        annotation = section.model_fields[str(key)].annotation
        section = annotation if _is_section(annotation) else section
    return section


def _nearest_key(key: str) -> str:
    """A key of the same last name, or a similar one of the same section, or the most similar."""
    known = list(_dotted_keys(Settings))
    section, _, name = key.rpartition(".")
    same_name = [other for other in known if other.rpartition(".")[2] == name]
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1)
    return (same_name or near or difflib.get_close_matches(key, known, n=1, cutoff=0))[0]


def _dotted_keys(section: type[_Section], prefix: str = "") -> Iterator[str]:
    """Every key that can be set, as `section.key`."""
    for key, field in zip(section.keys(), section.model_fields.values(), strict=True):
        yield prefix + key
        if _is_section(field.annotation):
            yield from _dotted_keys(field.annotation, f"{prefix}{key}.")


def _is_section(annotation: object) -> TypeGuard[type[_Section]]:
    return isinstance(annotation, type) and issubclass(annotation, _Section)
