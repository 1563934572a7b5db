"""The figures of cells, and the cells of the short run."""

import pytest

from tests.bench.cells import (
    ADMITTED,
    BARE,
    EMBEDDED,
    GATEWAY,
    HIT_SMALL,
    LATENCY,
    PEERS,
    PURCHASE_SMALL,
    SHORT,
    UPSTREAM,
    all_cells,
    chosen_cells,
)
from tests.bench.goals import CELL_GOALS, RateGoal, cell_figures
from tests.bench.load import Failed
from tests.bench.results import Measurement
from tests.bench.run import CURVES, PARTS, Options
from tests.bench.workers import workers_figure


def test_the_figures_of_a_hit():
    servers = {
        GATEWAY: Measurement(3000.0, 5.0, worker_ms=0.22, redis_ms=0.02),
        ADMITTED: Measurement(2000.0, 7.0, worker_ms=0.4, redis_ms=0.1),
        EMBEDDED: Measurement(1200.0, 9.0, worker_ms=0.5),
        BARE: Measurement(2400.0, 6.0, worker_ms=0.3, redis_ms=0.02),
    }
    found = {figure.name: figure for figure in cell_figures(HIT_SMALL, servers)}
    time = found["hit 2 KB c=16: processor time, worker"]
    assert (time.value, time.floor_verdict, time.target_verdict) == (0.22, "met", "missed")
    assert found["hit 2 KB c=16: processor time, Redis"].floor_verdict == "missed"
    rate = found["hit 2 KB c=16: rate beside bare"]
    assert (rate.value, rate.target_verdict) == (1.25, "met")
    admitted = found["hit 2 KB c=16, admitted at the store: processor time, Redis"]
    assert (admitted.value, admitted.floor_verdict) == (0.1, "")
    embedded = found["hit 2 KB c=16, embedded store: rate beside gateway"]
    assert (embedded.value, embedded.floor_verdict) == (0.4, "missed")


def test_a_peer_that_was_not_measured_has_no_verdict():
    servers = {GATEWAY: Measurement(500.0, worker_ms=1.0, redis_ms=0.3)}
    found = {figure.name: figure for figure in cell_figures(PURCHASE_SMALL, servers)}
    beside = found["purchase 2 KB c=16: rate beside litellm"]
    assert (beside.value, beside.floor_verdict) == (None, "n/a")


def test_added_latency_is_the_difference_of_medians():
    servers = {GATEWAY: Measurement(p50_ms=1.75), UPSTREAM: Measurement(p50_ms=0.25)}
    (figure,) = cell_figures(LATENCY, servers)
    assert (figure.value, figure.floor_verdict, figure.target_verdict) == (1.5, "met", "missed")


def test_workers_are_compared_by_processor_time():
    servers = {
        "gateway, 1 worker": Measurement(worker_ms=0.2, redis_ms=0.05),
        "gateway, 2 workers": Measurement(worker_ms=0.3, redis_ms=0.05),
        "gateway, 4 workers": Measurement(worker_ms=0.21, redis_ms=0.06),
    }
    assert workers_figure("hit", servers).value == pytest.approx(0.27 / 0.25)


def test_goals_name_servers_that_are_measured_in_both_runs():
    for goal in CELL_GOALS:
        named = {goal.server, *([goal.beside] if isinstance(goal, RateGoal) else [])}
        assert named <= set(goal.cell.servers), goal
        assert named <= set(SHORT.get(goal.cell, goal.cell.servers)), goal


def test_the_short_run_measures_cells_and_servers_of_the_full_run():
    full = {cell: set(cell.servers) for cell in all_cells()}
    assert {cell: set(servers) <= full[cell] for cell, servers in SHORT.items()} == dict.fromkeys(
        SHORT, True
    )


def test_cells_are_chosen_by_name():
    found = chosen_cells("purchase 2 KB", is_short=False)
    assert [cell.name for cell in found] == ["purchase 2 KB c=1", "purchase 2 KB c=16"]
    assert set(PEERS) < set(found[PURCHASE_SMALL])
    assert chosen_cells("no such cell", is_short=True) == {}


def test_parts_are_chosen_by_name_too():
    assert Options(5, 1).parts == [part for part in PARTS if part != CURVES]
    assert Options(5, 1, has_curves=True).parts == list(PARTS)
    assert Options(5, 1, only="curves").parts == [CURVES]
    assert set(Options(2, 1, is_short=True).parts) < set(PARTS)


def test_a_run_of_nothing_is_refused():
    Options(5, 1, only="hit 2 KB").check()
    Options(5, 1, only="workers").check()
    with pytest.raises(
        Failed, match=r"'memories' is in the name of no cell .* hit 2 KB c=1, .*curves"
    ):
        Options(5, 1, only="memories").check()
