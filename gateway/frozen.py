"""Dataclasses whose fields are set once, and that are made fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """As `@dataclass(frozen=True, slots=True)`, but only the type checker refuses a change.

    At run time a frozen dataclass sets each field by a call. These take a seventh of the time, and
    a purchase makes 60 of them with 350 fields.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)
