"""`docs/performance.md`: its tables, its floors and targets, and its sizing guide."""

import re
from dataclasses import replace

import pytest

from tests.bench import goals
from tests.bench.cells import HIT_COLD, PEERS, all_cells
from tests.bench.goals import cell_figures
from tests.bench.performance import PAGE, daily_bounds, load_run, rendered
from tests.bench.results import Figure, Part, as_document, ratio
from tests.bench.sizing.arithmetic import GIVEN, Plan, most
from tests.bench.sizing.figures import load_figures

TEXT = PAGE.read_text(encoding="utf-8")
RUN = load_run()
FIGURES = load_figures()


def test_the_tables_follow_from_the_committed_results():
    stale = "docs/performance.md is stale: python -m tests.bench.performance"
    assert rendered(TEXT, RUN, FIGURES) == TEXT, stale


def test_a_page_without_a_block_is_refused():
    with pytest.raises(ValueError, match=r"performance.md needs the block <!-- cells --> once"):
        rendered(TEXT.replace("<!-- cells -->", ""), RUN, FIGURES)


def test_every_floor_and_target_was_measured():
    measured = {_scaled(figure.name): figure for figure in RUN.results.figures}
    for expected in _expected():
        found = measured[_scaled(expected.name)]
        assert (found.floor, found.target) == (expected.floor, expected.target), found.name
        assert found.value is not None or found.name.endswith(PEERS), found.name


def test_every_cell_has_processor_time_beside_the_bare_handler():
    for cell in all_cells():
        servers = RUN.results.cells[cell.name]
        assert ratio(servers["gateway"].processor_ms, servers["bare"].processor_ms), cell.name


def test_a_missed_floor_is_shown():
    figures = (Figure("a time", 3.0, "ms", 2.0, 1.0), Figure("a peer", None, "×", 1.5))
    text = rendered(TEXT, replace(RUN, results=Part(figures=figures)), FIGURES)
    assert "| a time | 3 ms | ≤ 2 ms | **missed** | ≤ 1 ms | **missed** |" in text
    assert "| a peer | – | ≤ 1.5 × | not measured | – | – |" in text


def test_the_sizing_guide_agrees_with_the_page_about_scale():
    """The same network and memory of Redis carry as many images a day as there a minute."""
    processors, network, memory = daily_bounds(FIGURES, GIVEN.machine_processors, GIVEN.hit_share)
    limit = GIVEN.busy * GIVEN.machine_bits
    assert network == pytest.approx(1440 * most(FIGURES, lambda p: p.network_bits, limit))
    assert processors < 1440 * most(
        FIGURES, lambda p: p.worker_busy, GIVEN.busy * GIVEN.machine_processors
    )
    used = Plan(FIGURES, memory / 1440).redis_bytes(GIVEN.short_records_seconds)
    assert used == pytest.approx(GIVEN.machine_processors * 4e9 / 2)


def test_more_processors_carry_more_until_one_redis_is_full():
    few, many, most_processors = (daily_bounds(FIGURES, n, 0.5)[0] for n in (2, 4, 1000))
    assert many == pytest.approx(2 * few)
    assert most_processors == pytest.approx(
        1440 * most(FIGURES, lambda p: p.redis_busy, GIVEN.busy)
    )


def test_every_field_of_the_json_is_described():
    document = as_document(RUN)
    described = set(re.findall(r"`(\w+)`", TEXT))
    fields = {*document, *document["figures"][0], "at", "servers"}
    fields |= {field for cell in document["cells"].values() for s in cell.values() for field in s}
    assert fields <= described


def test_every_link_of_the_page_has_a_target():
    for link in re.findall(r"\]\(([^)#\s:]+)[)#]", TEXT):
        assert (PAGE.parent / link).exists(), link


def _expected() -> list[Figure]:
    single = [goals.ADDED_LATENCY, goals.IN_FLIGHT, goals.LARGE_MEMORY, goals.LARGE_PAUSE]
    many = [goals.IDENTICAL, *goals.FIRST_PARTIAL.values(), *goals.SCALE.values()]
    others = [goal.figure(None) for goal in (*single, *many, *goals.WORKERS.values())]
    cells = [*all_cells(), HIT_COLD]
    return [*(figure for cell in cells for figure in cell_figures(cell, {})), *others]


def _scaled(name: str) -> str:
    """The name without the number of entries of the full store."""
    return re.sub(r"a hit at \S+ entries", "a hit at many entries", name)
