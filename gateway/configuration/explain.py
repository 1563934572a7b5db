"""Messages about invalid settings: pydantic's errors in the file's own keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, get_args

from pydantic_core import ErrorDetails

from gateway.configuration.fields import UnshownValueError
from gateway.configuration.settings import Section, Settings
from gateway.values import nearest

_ENTRY: Final = re.compile(r"^upstreams\.\d+\.")
_QUOTATION: Final = re.compile(r"""; (?:'.*'|".*") is none""", re.DOTALL)
"""The part of a value that a parser refused. It may be the whole value, but for white space."""


def explain(error: ErrorDetails, *, is_secret: bool = False) -> str:
    """One line about one error: the key, its value, and what was expected.

    The value is left out if it may be, or may contain, a secret.
    """
    key = ".".join(str(part) for part in error["loc"])
    if not key:
        # Of two sections together.
        return f"expected {error.get('ctx', {}).get('error') or error['msg']}."
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key '{key}'. Did you mean '{_nearest_key(key)}'?"
    context = error.get("ctx", {})
    expected: object
    if error["type"] == "model_type":
        expected = "a section with " + ", ".join(_section_at(error["loc"]).keys())
    else:
        # `error` is the ValueError of one of our parsers, `expected` is pydantic's.
        expected = context.get("error") or context.get("expected") or error["msg"]
    if is_secret and not isinstance(expected, UnshownValueError):
        expected = _QUOTATION.sub("", str(expected))
    # A mapping may contain a secret further down.
    given = error["input"]
    is_mapping = isinstance(given, dict) or (
        isinstance(given, list | tuple) and any(isinstance(item, dict) for item in given)
    )
    is_shown = not (is_secret or is_mapping or isinstance(expected, UnshownValueError))
    subject = f"{given!r} is" if is_shown else "the value is"
    return f"{key}: {subject} not valid; expected {expected}."


def _section_at(path: Sequence[int | str]) -> type[Section]:
    section: type[Section] = Settings
    for key in path:
        if isinstance(key, str):
            section = _section_of(section.model_fields[key].annotation) or section
    return section


def _nearest_key(key: str) -> str | None:
    """A key with the same last part, else a similar one of the same section, else any."""
    entry = _ENTRY.match(key)
    if entry is not None:
        # An entry of the list has the keys of the section for one account.
        near = _nearest_key(f"upstream.{key[entry.end() :]}") or ""
        return entry[0] + near.removeprefix("upstream.") if near.startswith("upstream.") else near
    known = list(_dotted_keys(Settings))
    section, _, name = key.rpartition(".")
    same_name = [other for other in known if other.rpartition(".")[2] == name]
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    if same_name:
        return same_name[0]
    return nearest(key, siblings, min_similarity=0.6) or nearest(key, known)


def _dotted_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key, as `section.key`."""
    for key, field in zip(section.keys(), section.model_fields.values(), strict=True):
        yield prefix + key
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _dotted_keys(field.annotation, f"{prefix}{key}.")


def _section_of(annotation: object) -> type[Section] | None:
    """The section that a key holds, also if it holds a list of them."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None
