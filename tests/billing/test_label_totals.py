"""Running totals of labels move with the others, and metrics show the labels of the setting."""

from __future__ import annotations

from gateway.billing.running_totals import RunningTotals, label_total, running_totals
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import ReadRunningTotals, RunningTotal
from gateway.store.protocol import Store
from tests.billing.test_verification import buy, verification_of

LABELS = {"cost_center": "4711", "office": "Zürich = HQ"}


async def test_a_purchase_moves_the_total_of_each_of_its_labels(store: Store) -> None:
    await buy(store, "p", labels=LABELS)
    await buy(store, "q", labels={"cost_center": "4711"})
    names = tuple(label_total(*label) for label in LABELS.items())
    found = await execute(store, ReadRunningTotals(names))
    assert found == [RunningTotal(80_000), RunningTotal(40_000)]
    verified = await verification_of(store).run()
    assert verified.is_balanced
    assert verified.running_totals == len(["key", "team", "everyone", "model", *LABELS])


async def test_metrics_show_the_values_of_the_labels_of_the_setting(store: Store) -> None:
    await buy(store, "p", labels=LABELS)
    totals = RunningTotals(store, ("cost_center", "project"))
    totals.label_sets = [LABELS, {"cost_center": "4712"}, {}]
    shown = (await totals.read([])).totals
    assert shown["cost_center", "4711"] == RunningTotal(40_000)
    assert shown["cost_center", "4712"] == RunningTotal()
    assert {scope for scope, _ in shown} == {"cost_center", "everyone"}


async def test_metrics_show_a_bounded_number_of_values(store: Store) -> None:
    totals = RunningTotals(store, ("cost_center",))
    totals.label_sets = [{"cost_center": str(number)} for number in range(600)]
    assert len((await totals.read([])).totals) == 500 + 1


def test_a_record_moves_no_more_than_sixteen_totals_of_labels() -> None:
    labels = {f"label_{number}": "x" for number in range(40)}
    record = Record(id="r", request_id="r", time=0.0, key="a", key_id="a", labels=labels)
    assert len(running_totals(record)) == 2 + 16
