"""Exports in FOCUS: their columns, their lines, and that they add up to the totals of the month.

The columns and their levels are those of the specification, versions 1.0 to 1.2.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing import focus_export
from gateway.billing.focus import (
    COLUMNS,
    VERSIONS,
    Charge,
    Month,
    Seller,
    columns_of,
    focus_lines,
    parse_month,
    parse_version,
    show_micros,
)
from gateway.billing.focus_export import FocusExport, FocusSettings
from gateway.billing.record_amounts import Sums
from gateway.calendar import Calendar
from gateway.errors import InvalidRequest
from gateway.images import Record
from gateway.store.protocol import Store
from tests.billing.test_totals import append, bought, record, totals_of

BERLIN = ZoneInfo("Europe/Berlin")
SELLER = Seller("api.example.com", "default")

MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass"),
    *("ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost"),
    *("EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit"),
    *("ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
)
"""The same in all three versions."""
NULLABLE = {"BillingAccountName", "ChargeClass"}
"""Mandatory columns that may be empty in a line of usage."""
COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")


def at(day: int, hour: int = 12, *, month: int = 10, zone: ZoneInfo = BERLIN) -> float:
    return datetime(2026, month, day, hour, tzinfo=zone).timestamp()


AFTER = at(3, month=11)


def export_of(store: Store, *, now: float = AFTER, zone: str = "Europe/Berlin") -> FocusExport:
    settings = FocusSettings(time_zone=zone, provider=SELLER.name, account=SELLER.account)
    return FocusExport(store, totals_of(store, zone=zone), settings, clock=lambda: now)


async def read(
    export: FocusExport, month: str = "2026-10", version: str | None = None
) -> list[dict[str, str]]:
    pieces = [piece async for piece in export.pieces(export.parse(month, version))]
    return list(csv.DictReader(io.StringIO(b"".join(pieces).decode(), newline="")))


def cost_of(lines: Iterable[dict[str, str]]) -> Decimal:
    return sum((Decimal(line["BilledCost"]) for line in lines), Decimal(0))


def usd(records: Iterable[Record]) -> Decimal:
    return Decimal(sum(one.cost_micros for one in records)) / 1_000_000


# ── columns ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_its_mandatory_columns_and_own_ones_last(version: str) -> None:
    columns = columns_of(version)
    assert set(MANDATORY) <= set(columns)
    own = [name for name in columns if name.startswith("x_")]
    assert columns[-len(own) :] == own
    assert columns == sorted(columns)
    assert ("SkuMeter" in columns) == (version >= "1.1")
    assert ("SubAccountType" in columns) == (version >= "1.2")


def test_an_unknown_version_is_answered_with_the_nearest() -> None:
    assert parse_version(None) == "1.2"
    with pytest.raises(InvalidRequest, match=r"Did you mean '1\.2'\?$") as raised:
        parse_version("1.20")
    assert raised.value.param == "version"


@pytest.mark.parametrize(
    "text", [None, "", "2026", "2026-13", "2026-00", "26-10", "2026-12", "1969-12", "٢٠٢٦-10", "x"]
)
def test_a_month_that_is_none_or_has_not_begun_is_refused(text: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_month(text, Calendar(BERLIN), time_zone="Europe/Berlin", now=AFTER)
    assert raised.value.param == "month"


async def test_a_month_whose_totals_are_gone_is_refused(store: Store) -> None:
    export = export_of(store)
    assert export.parse("2024-09", None).month.label == "2024-09"
    with pytest.raises(InvalidRequest, match="keep_totals"):
        export.parse("2024-07", None)


# ── lines ───────────────────────────────────────────────────────────────────────────────────


async def test_a_line_has_a_value_in_every_column_that_must_not_be_empty(store: Store) -> None:
    labels = {"cost_center": "4711"}
    paid = bought(time=at(20), team="art", labels=labels, costs={"image_out": 39_999, "text_in": 1})
    await append(store, [paid])

    second, first = await read(export_of(store))

    for line in (first, second):
        assert {name for name in MANDATORY if not line[name]} == NULLABLE
    assert first == {
        **dict.fromkeys(COSTS, "0.039999"),
        "BillingAccountId": "default",
        "BillingAccountName": "",
        "BillingCurrency": "USD",
        # The month of Berlin, in UTC: it begins in summer time and ends in winter time.
        "BillingPeriodStart": "2026-09-30T22:00:00Z",
        "BillingPeriodEnd": "2026-10-31T23:00:00Z",
        "ChargePeriodStart": "2026-10-19T22:00:00Z",
        "ChargePeriodEnd": "2026-10-20T22:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": "m, output_image_tokens",
        "ChargeFrequency": "Usage-Based",
        "ConsumedQuantity": "1000",
        "ConsumedUnit": "Tokens",
        "PricingQuantity": "1000",
        "PricingUnit": "Tokens",
        **dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), "api.example.com"),
        "ResourceId": "k1",
        "ResourceName": "alice",
        "ResourceType": "Gateway key",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Image generation",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "m, output_image_tokens",
        "SkuMeter": "output image tokens",
        "SkuPriceId": "m, output_image_tokens",
        "SubAccountId": "art",
        "SubAccountName": "art",
        "SubAccountType": "Team",
        "Tags": '{"cost_center":"4711"}',
        "x_Model": "m",
        "x_Quality": "high",
        "x_Size": "1024x1024",
        "x_TimeZone": "Europe/Berlin",
    }
    assert (second["SkuId"], second["PricingQuantity"]) == ("m, input_text_tokens", "9")


async def test_a_day_of_25_hours_is_one_charge_period(store: Store) -> None:
    await append(store, [bought(time=at(25, 1)), bought(time=at(25, 23))])
    lines = await read(export_of(store))
    assert {(line["ChargePeriodStart"], line["ChargePeriodEnd"]) for line in lines} == {
        ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z")
    }


async def test_hits_and_refusals_have_no_line(store: Store) -> None:
    await append(store, [record(outcome="hit", time=at(2)), record(outcome="refused", time=at(2))])
    assert await read(export_of(store)) == []


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
async def test_no_spreadsheet_takes_a_cell_for_a_formula(store: Store, text: str) -> None:
    names = {"key": text, "team": text, "model": text, "size": text, "quality": text}
    await append(store, [bought(time=at(2), labels={text: text}, **names)])
    for line in await read(export_of(store)):
        assert [value for value in line.values() if value.startswith(tuple("=+-@\t\r"))] == []
        assert line["SubAccountId"] == f"'{text}"
        assert json.loads(line["Tags"]) == {text: text}  # begins with a brace: not changed


@given(st.integers(-(10**15), 10**15))
def test_money_is_shown_exactly(micros: int) -> None:
    shown = show_micros(micros)
    assert Decimal(shown) * 1_000_000 == micros
    assert len(shown.rpartition(".")[2]) == 6


TEXTS = st.one_of(st.none(), st.text(max_size=12))


@given(
    st.fixed_dictionaries(dict.fromkeys(("team", "key", "key_id", "model", "size"), TEXTS)),
    st.dictionaries(st.sampled_from(["text_in", "image", "estimated"]), st.integers(-99, 99)),
    st.integers(-(10**9), 10**9),
)
def test_any_charge_is_lines_of_csv_that_add_up(
    dimensions: dict[str, Any], costs: dict[str, int], rest: int
) -> None:
    sums = Sums(cost_micros=sum(costs.values()) + rest, costs=costs)
    charge = Charge(0, 86_400, {**dimensions, "labels": "other"}, sums)
    month = Month("2026-10", "UTC", 0, 86_400)
    lines = list(focus_lines(month, [charge], version="1.2", seller=SELLER))
    assert {len(line) for line in lines} <= {len(COLUMNS)}
    cost = columns_of("1.2").index("BilledCost")
    assert sum(Decimal(line[cost]) * 1_000_000 for line in lines) == sums.cost_micros


# ── months ──────────────────────────────────────────────────────────────────────────────────


def month_of_records(seed: int) -> list[Record]:
    """Purchases of three teams around October, most of them with their cost by kind."""
    chosen = random.Random(seed)
    found = []
    for number in range(120):
        parts = {kind: chosen.randrange(1, 90_000) for kind in ("text_in", "image_out")}
        found.append(
            bought(
                id=f"r{number}",
                request_id=f"r{number}",
                time=chosen.uniform(at(29, month=9), at(2, month=11)),
                team=chosen.choice(["art", "ads", None]),
                model=chosen.choice(["m", "n"]),
                cost_micros=sum(parts.values()),
                costs=parts if chosen.random() < 0.8 else {},
            )
        )
    return found


@pytest.mark.parametrize("is_folded", [False, True])
async def test_lines_add_up_to_the_totals_of_the_month(store: Store, *, is_folded: bool) -> None:
    records = month_of_records(1)
    await append(store, records)
    export = export_of(store)
    if is_folded:
        await totals_of(store, zone="Europe/Berlin").fold()

    lines = await read(export)

    inside = [one for one in records if at(1, 0) <= one.time < at(1, 0, month=11)]
    assert 0 < len(inside) < len(records)
    assert cost_of(lines) == usd(inside) > 0
    for team in ("art", "ads", ""):
        of_team = [one for one in inside if (one.team or "") == team]
        assert cost_of(line for line in lines if line["SubAccountId"] == team) == usd(of_team)


async def test_a_correction_after_the_end_of_the_month_is_a_line_of_its_own(store: Store) -> None:
    paid = {"costs": {"estimated": 40_000}, "tokens": {"estimated": 500}}
    presumed = bought(time=at(30), outcome="failed", flags=("presumed",), **paid)
    cheaper = {"cost_micros": -30_000, "costs": {"estimated": -40_000, "image_out": 10_000}}
    late = presumed.but(
        id="r-late",
        outcome="bought",
        corrects="r",
        tokens={"estimated": -500, "image_out": 200},
        **cheaper,
    )
    await append(
        store,
        [
            presumed,
            late.but(corrected_at=at(1, 0, month=11)),
            late.but(corrected_at=at(1, 0, month=11) - 1),  # within the month
            bought(time=at(1, 0, month=11), corrected_at=AFTER),  # of another month
        ],
    )

    lines = await read(export_of(store))

    def shown(charge_class: str) -> dict[str, tuple[str, str]]:
        return {
            line["SkuMeter"]: (line["BilledCost"], line["PricingQuantity"])
            for line in lines
            if line["ChargeClass"] == charge_class
        }

    # One correction within the month has made the estimate a cost of tokens.
    assert shown("") == {"output image tokens": ("0.010000", "200")}
    assert shown("Correction") == {
        "estimated": ("-0.040000", "-500"),
        "output image tokens": ("0.010000", "200"),
    }
    assert {line["ChargePeriodStart"] for line in lines} == {"2026-10-29T23:00:00Z"}
    assert {line["BillingPeriodEnd"] for line in lines} == {"2026-10-31T23:00:00Z"}
    assert cost_of(lines) == Decimal("-0.02")


async def test_the_present_month_has_no_corrections(store: Store) -> None:
    late = bought(time=at(2), corrects="r", corrected_at=at(2), cost_micros=-1)
    await append(store, [bought(time=at(2)), late])
    lines = await read(export_of(store, now=at(31, 23)))
    assert {line["ChargeClass"] for line in lines} == {""}
    assert cost_of(lines) == Decimal("0.039999")


async def test_a_month_with_too_many_groups_is_read_in_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = month_of_records(2)
    late = records[0].but(
        id="late", corrects="r0", corrected_at=AFTER - 1, cost_micros=-5, costs={}
    )
    await append(store, [*records, late.but(time=at(9))])
    whole = await read(export_of(store))
    monkeypatch.setattr(focus_export, "MAX_GROUPS", 10)
    monkeypatch.setattr(focus_export, "PIECE_LINES", 7)
    assert await read(export_of(store)) == whole
    assert "Correction" in {line["ChargeClass"] for line in whole}


async def test_a_correction_of_a_row_that_the_totals_had_no_room_for_adds_up(store: Store) -> None:
    records = [bought(time=at(9), size=f"{n}x{n}") for n in range(1_001)]
    late = records[-1].but(id="late", corrects="r", corrected_at=AFTER - 1, cost_micros=-7)
    await append(store, [*records, late])
    await totals_of(store, zone="Europe/Berlin").fold()
    lines = await read(export_of(store))
    assert cost_of(lines) == usd([*records, late])
    assert cost_of(line for line in lines if line["ChargeClass"]) == Decimal("-0.000007")
