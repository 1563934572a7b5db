"""Limits as people write them, in `access.yaml`, in the admin API and in the records of the store.

A limit is a number, or an object of `max`, `mode` and `warn_at`. Money is in dollars here and in
micro-dollars in the rules that requests are counted by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict

from gateway.errors import MAX_ECHO
from gateway.images import LimitRule
from gateway.limits import LIMITS, MICROS_PER_USD
from gateway.values import nearest

MAX_LIMIT: Final = 2**52
"""The largest limit, in its unit or in micro-dollars: exact in every store."""
MAX_PER_MINUTE: Final = 10**8
"""The largest token bucket, whose level in 1/60,000,000 of a unit must be exact too."""
MAX_WARNINGS: Final = 16
MAX_WARN_AT: Final = 10

Mode: TypeAlias = Literal["enforce", "shadow"]

DEFAULT_WARN_AT: Final = (0.5, 0.8, 1.0)

_FIELDS: Final = ("max", "mode", "warn_at")


@dataclass(frozen=True, slots=True)
class LimitValue:
    """A limit as an administrator sets it."""

    maximum: Decimal
    """In dollars if it is money."""
    mode: Mode = "enforce"
    warn_at: tuple[float, ...] = DEFAULT_WARN_AT

    def public(self) -> dict[str, Any]:
        """All of its fields."""
        return {"max": as_number(self.maximum), "mode": self.mode, "warn_at": list(self.warn_at)}

    def shown(self) -> Any:
        """The number alone, if the other fields have their defaults."""
        return self.public() if self.options is not None else as_number(self.maximum)

    @property
    def options(self) -> LimitOptions | None:
        """What a record has besides the number; None if all of it is the default."""
        if (self.mode, self.warn_at) == ("enforce", DEFAULT_WARN_AT):
            return None
        return LimitOptions(mode=self.mode, warn_at=self.warn_at)


class LimitOptions(BaseModel):
    """The fields of a limit besides its number.

    Records have them in a field of their own: an older gateway on the same store reads the numbers,
    and enforces limits that are in shadow mode.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    mode: Mode = "enforce"
    warn_at: tuple[float, ...] = DEFAULT_WARN_AT


def limit_values(
    limits: Mapping[str, Decimal], options: Mapping[str, LimitOptions] | None
) -> dict[str, LimitValue]:
    """The limits of a record; those that only a newer gateway knows are left out."""
    found = {}
    for name, maximum in limits.items():
        if name in LIMITS:
            option = (options or {}).get(name) or LimitOptions()
            found[name] = LimitValue(maximum, option.mode, option.warn_at)
    return found


def record_limits(values: Mapping[str, LimitValue]) -> dict[str, Any]:
    """The fields `limits` and `limit_options` of a record."""
    options = {name: value.options for name, value in values.items() if value.options is not None}
    maxima = {name: value.maximum for name, value in values.items()}
    return {"limits": maxima, "limit_options": options or None}


def limit_rules(
    values: Mapping[str, LimitValue], raised: Mapping[str, Decimal] | None = None
) -> dict[str, LimitRule]:
    """The rules that requests are counted by, with what is added to each limit."""
    return {
        name: LimitRule(
            min(in_units(name, value.maximum + (raised or {}).get(name, 0)), largest(name)),
            mode=value.mode,
            warn_at=value.warn_at,
        )
        for name, value in values.items()
    }


def parse_limits(limits: Mapping[str, Any]) -> dict[str, LimitValue]:
    """Checked limits; those that are None are left out. Raises `ValueError` with a sentence."""
    return {name: parse_limit(name, value) for name, value in limits.items() if value is not None}


def merge_limits(former: Mapping[str, LimitValue], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Limits for `parse_limits`: `former` with `changes` in them.

    A number replaces the maximum, an object the fields that it has. None removes a limit, or has a
    field return to its default.
    """
    merged: dict[str, Any] = {name: value.public() for name, value in former.items()}
    for name, change in changes.items():
        if change is None or name not in merged:
            merged[name] = change
        elif isinstance(change, Mapping):
            merged[name] = {**merged[name], **change}
        else:
            merged[name] = {**merged[name], "max": change}
    return merged


class Limited(Protocol):
    """A record with limits and labels: of a key, a team or everyone."""

    @property
    def limits(self) -> Mapping[str, Decimal]:
        """The maxima, also of limits that only a newer gateway knows."""

    @property
    def limit_values(self) -> dict[str, LimitValue]:
        """The limits; a newer gateway's are left out."""

    @property
    def labels(self) -> Mapping[str, str] | None:
        """None: it has none."""


def shown_limits(record: Limited) -> dict[str, Any]:
    """All limits for JSON, those of a newer gateway last."""
    known = {name: value.shown() for name, value in record.limit_values.items()}
    return known | {name: as_number(value) for name, value in _unknown_limits(record).items()}


def whole_changes(
    record: Limited, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Decimal]]:
    """`changes` with whole limits and labels, merged into those of the record.

    Limits of a newer gateway cannot be checked here, and stay as they are: they come besides.
    """
    whole, unknown = dict(changes), _unknown_limits(record)
    limits, labels = changes.get("limits", {}), changes.get("labels")
    if isinstance(limits, Mapping):
        whole["limits"] = merge_limits(record.limit_values, limits)
    elif limits is None:
        whole["limits"], unknown = {}, {}
    if isinstance(labels, Mapping):
        whole["labels"] = {**(record.labels or {}), **labels}
    return whole, unknown


def _unknown_limits(record: Limited) -> dict[str, Decimal]:
    return {name: value for name, value in record.limits.items() if name not in LIMITS}


def parse_limit(name: str, value: object) -> LimitValue:
    """One limit. Raises `ValueError` with a sentence."""
    check_limit_name(name)
    if not isinstance(value, Mapping):
        return LimitValue(parse_amount(name, value))
    for field in value:
        if field not in _FIELDS:
            near = nearest(str(field), _FIELDS)
            raise ValueError(
                f"Limit '{name}': unknown field '{str(field)[:MAX_ECHO]}'. Did you mean '{near}'?"
            )
    if value.get("max") is None:
        raise ValueError(f"Limit '{name}': 'max' is missing.")
    return LimitValue(
        parse_amount(name, value["max"]),
        mode=_parse_mode(name, value.get("mode")),
        warn_at=_parse_warn_at(name, value.get("warn_at")),
    )


def check_limit_name(name: str) -> None:
    """Raises `ValueError`, which names the nearest limit, for the name of none."""
    if name not in LIMITS:
        near = nearest(name, LIMITS)
        raise ValueError(f"Unknown limit '{name[:MAX_ECHO]}'. Did you mean '{near}'?")


def parse_amount(name: str, value: object) -> Decimal:
    """The size of a limit, in dollars if it is money. Raises `ValueError` with a sentence."""
    scale = _units_per_number(name)
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    # Through text: `Decimal(0.1)` would have all digits of the binary fraction.
    number = Decimal(str(value)) if is_number else Decimal("nan")
    # The command line's numbers are decimals.
    shown = (str(value) if isinstance(value, Decimal) else repr(value))[:MAX_ECHO]
    if number.is_finite() and number > largest(name) // scale:
        raise ValueError(f"Limit '{name}' is too large: {shown}.")
    if not number.is_finite() or number < 0 or not _is_whole(number, scale):
        kind = "an amount in US dollars" if scale > 1 else "a whole number"
        raise ValueError(f"Limit '{name}' must be {kind}, 0 or more, not {shown}.")
    return number


def _is_whole(number: Decimal, scale: int) -> bool:
    """Whether it has no fraction of a unit, of which there are `scale` in 1."""
    try:
        # A product would be rounded to 28 digits, and may lose the fraction.
        number.quantize(Decimal(1) / scale, context=Context(traps=[Inexact, InvalidOperation]))
    except (Inexact, InvalidOperation):
        return False
    return True


def largest(name: str) -> int:
    """The largest maximum of a limit, in its unit."""
    return MAX_PER_MINUTE if LIMITS[name].period == "minute" else MAX_LIMIT


def in_units(name: str, amount: Decimal) -> int:
    """An amount in the limit's unit, money in micro-dollars."""
    return int(amount * _units_per_number(name))


def from_units(name: str, amount: int) -> int | float:
    """The inverse of `in_units`, for JSON."""
    return as_number(Decimal(amount) / _units_per_number(name))


def as_number(amount: Decimal) -> int | float:
    """A number of JSON: whole if it can be."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def _parse_mode(name: str, value: object) -> Mode:
    if value is not None and value not in get_args(Mode):
        shown = str(value)[:MAX_ECHO]
        near = nearest(shown, get_args(Mode))
        raise ValueError(
            f"Limit '{name}': 'mode' must be enforce or shadow, not '{shown}'. "
            f"Did you mean '{near}'?"
        )
    return "shadow" if value == "shadow" else "enforce"


def _parse_warn_at(name: str, value: object) -> tuple[float, ...]:
    if value is None:
        return DEFAULT_WARN_AT
    parts: Sequence[Any] = value if isinstance(value, list | tuple) else [None]
    is_valid = len(parts) <= MAX_WARNINGS and all(
        # Neither NaN nor an infinity is in the range.
        isinstance(part, int | float) and not isinstance(part, bool) and 0 < part <= MAX_WARN_AT
        for part in parts
    )
    if not is_valid:
        raise ValueError(
            f"Limit '{name}': 'warn_at' must be a list of up to {MAX_WARNINGS} numbers above 0 and "
            f"up to {MAX_WARN_AT}, such as [0.5, 0.8, 1.0], not {repr(value)[:MAX_ECHO]}."
        )
    return tuple(sorted({float(part) for part in parts}))


def _units_per_number(limit: str) -> int:
    """Money is set in dollars and counted in micro-dollars."""
    return MICROS_PER_USD if LIMITS[limit].unit == "usd_micros" else 1
