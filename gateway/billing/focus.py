"""FOCUS: a month's costs in the columns of the FinOps Open Cost and Usage Specification. Pure.

The columns are those of https://focus.finops.org/focus-specification/v1-2/: all mandatory ones, and
those of the others for which the gateway has values. `focus_export` reads the books for them, and
`docs/reference/billing.md#focus` says what is in each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

import orjson

from gateway.billing.line_items import IMAGES, TOKENS, LineItem, line_items
from gateway.billing.record_amounts import Sums
from gateway.calendar import Calendar, next_month
from gateway.csv_text import csv_lines
from gateway.errors import ErrorCode, InvalidRequest, shorten_name
from gateway.limits import MICROS_PER_USD
from gateway.values import nearest

VERSIONS: Final = ("1.0", "1.1", "1.2")
DEFAULT_VERSION: Final = "1.2"

COLUMNS: Final[Mapping[str, str]] = {
    "BilledCost": "1.0",
    "BillingAccountId": "1.0",
    "BillingAccountName": "1.0",
    "BillingCurrency": "1.0",
    "BillingPeriodEnd": "1.0",
    "BillingPeriodStart": "1.0",
    "ChargeCategory": "1.0",
    "ChargeClass": "1.0",
    "ChargeDescription": "1.0",
    "ChargeFrequency": "1.0",
    "ChargePeriodEnd": "1.0",
    "ChargePeriodStart": "1.0",
    "ConsumedQuantity": "1.0",
    "ConsumedUnit": "1.0",
    "ContractedCost": "1.0",
    "EffectiveCost": "1.0",
    "InvoiceIssuerName": "1.0",
    "ListCost": "1.0",
    "PricingQuantity": "1.0",
    "PricingUnit": "1.0",
    "ProviderName": "1.0",
    "PublisherName": "1.0",
    "ResourceId": "1.0",
    "ResourceName": "1.0",
    "ResourceType": "1.0",
    "ServiceCategory": "1.0",
    "ServiceName": "1.0",
    "ServiceSubcategory": "1.1",
    "SkuId": "1.0",
    "SkuMeter": "1.1",
    "SkuPriceId": "1.0",
    "SubAccountId": "1.0",
    "SubAccountName": "1.0",
    "SubAccountType": "1.2",
    "Tags": "1.0",
    "x_Model": "1.0",
    "x_Quality": "1.0",
    "x_Size": "1.0",
    "x_TimeZone": "1.0",
}
"""Every column, with the version of FOCUS from which on it is there. Own ones begin with `x_`."""

CORRECTION: Final = "Correction"
"""The `ChargeClass` of a correction to a month that was over."""

_UNITS: Final = {TOKENS: "Tokens", IMAGES: "Images"}
_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Seller:
    """Whose service is charged for."""

    name: str
    """The host of upstream."""
    account: str
    """The name of the account there: that of the upstream."""


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month of a time zone: the billing period."""

    label: str
    """`2026-11`."""
    time_zone: str
    starts_at: int
    """Unix seconds."""
    ends_at: int


@dataclass(frozen=True, slots=True)
class Charge:
    """What one group of requests cost in one day."""

    starts_at: float
    """Unix seconds: of the day."""
    ends_at: float
    dimensions: Mapping[str, Any]
    """As a row of the totals has them."""
    sums: Sums
    is_correction: bool = False
    """It corrects a day of this month, and was made after the month."""


def parse_month(text: str | None, calendar: Calendar, *, time_zone: str, now: float) -> Month:
    """Reads `2026-11`. Raises `InvalidRequest`, also for a month that has not begun."""
    if text is None:
        raise InvalidRequest(
            "Missing required parameter: 'month'.",
            param="month",
            code=ErrorCode.MISSING_REQUIRED_PARAMETER,
        )
    matched = _MONTH.fullmatch(text)
    today = calendar.date_at(now)
    if matched is None or not (1970, 1) <= _numbers(matched) <= (today.year, today.month):
        raise InvalidRequest(
            f"Invalid 'month': expected a month that has begun, such as {today:%Y-%m}, but got "
            f"'{shorten_name(text)}'.",
            param="month",
            code=ErrorCode.INVALID_VALUE,
        )
    first = date(*_numbers(matched), 1)
    # West of Greenwich the year 1970 begins before it.
    starts_at = max(0, calendar.start_of(first))
    return Month(text, time_zone, starts_at, calendar.start_of(next_month(first)))


def _numbers(matched: re.Match[str]) -> tuple[int, int]:
    return int(matched[1]), int(matched[2])


def parse_version(text: str | None) -> str:
    """Reads a version of FOCUS. Raises `InvalidRequest`, which names the nearest."""
    if text is None or text in VERSIONS:
        return text or DEFAULT_VERSION
    raise InvalidRequest(
        f"Invalid 'version': expected one of {', '.join(VERSIONS)}, but got "
        f"'{shorten_name(text)}'. Did you mean '{nearest(text, VERSIONS) or DEFAULT_VERSION}'?",
        param="version",
        code=ErrorCode.INVALID_VALUE,
    )


def columns_of(version: str) -> list[str]:
    """The columns of a version of FOCUS, in their order."""
    return [name for name, since in COLUMNS.items() if since <= version]


def encode_lines(lines: Iterable[Sequence[str]]) -> bytes:
    """Lines of CSV. No cell is a formula; bytes of names that are not UTF-8 become `?`."""
    return csv_lines(lines).encode("utf-8", "replace")


def focus_lines(
    month: Month, charges: Iterable[Charge], *, version: str, seller: Seller
) -> Iterator[list[str]]:
    """The cells of each line item. What costs nothing and has no quantity has no line."""
    columns = columns_of(version)
    period = {
        "BillingAccountId": seller.account,
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _time(month.ends_at),
        "BillingPeriodStart": _time(month.starts_at),
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        **dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), seller.name),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Image generation",
        "ServiceSubcategory": "Generative AI",
        "x_TimeZone": month.time_zone,
    }
    for charge in charges:
        group = {**period, **_group_cells(charge)}
        for item in line_items(charge.dimensions, charge.sums):
            if item.cost_micros or item.quantity:
                cells = {**group, **_item_cells(item, charge.sums)}
                yield [cells.get(name, "") for name in columns]


def _group_cells(charge: Charge) -> dict[str, str]:
    dimensions = charge.dimensions
    team, key_id = dimensions.get("team"), dimensions.get("key_id")
    labels = dimensions.get("labels")
    return {
        "ChargeClass": CORRECTION if charge.is_correction else "",
        "ChargePeriodEnd": _time(charge.ends_at),
        "ChargePeriodStart": _time(charge.starts_at),
        "ResourceId": key_id or "",
        "ResourceName": dimensions.get("key") or "",
        "ResourceType": "Gateway key" if key_id else "",
        "SubAccountId": team or "",
        "SubAccountName": team or "",
        "SubAccountType": "Team" if team else "",
        "Tags": orjson.dumps(labels).decode() if isinstance(labels, dict) else "",
        "x_Model": dimensions.get("model") or "",
        "x_Quality": dimensions.get("quality") or "",
        "x_Size": dimensions.get("size") or "",
    }


def _item_cells(item: LineItem, sums: Sums) -> dict[str, str]:
    cost = show_micros(item.cost_micros)
    # The quantity of a cost without a kind is not known. FOCUS wants one of every usage.
    quantity = sums.images_bought if item.quantity is None else item.quantity
    unit = _UNITS[item.unit or IMAGES]
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), cost),
        "ChargeDescription": item.name,
        "ConsumedQuantity": str(quantity),
        "ConsumedUnit": unit,
        "PricingQuantity": str(quantity),
        "PricingUnit": unit,
        "SkuId": item.name,
        "SkuMeter": item.meter,
        "SkuPriceId": item.name,
    }


def show_micros(micros: int) -> str:
    """US dollars with six decimals, exactly."""
    whole, rest = divmod(abs(micros), MICROS_PER_USD)
    return f"{'-' if micros < 0 else ''}{whole}.{rest:06}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
