"""The dashboards of `deploy/grafana/` as JSON.

The rules are those of grafana/dashboard-linter, and some that it does not have: every metric and
label exists, and no panel covers another. What Prometheus answers to the queries is in
`test_dashboard_queries.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.dashboards import NAMES, Query, panels, queries, read_dashboard, variables
from tests.docs.pages import code, codes, read_page, rows_with
from tests.rows import each_row

UNITS = {
    *("bytes", "cps", "currencyUSD", "dateTimeAsIso", "none", "ops", "percentunit", "reqps"),
    *("s", "short"),
}
RUNNING_TOTALS = {f"gateway_{name}_usd_total" for name in ("charged", "corrected", "saved")}
"""Counters of the books: never reset, so panels subtract instead of estimating a rate."""

OF_GATEWAYS = {
    *("gateway_requests_total", "gateway_refusals_total", "gateway_shadow_refusals_total"),
    *("gateway_images_total", "gateway_tokens_total"),
}
"""Counters that a query may add up step by step, with what came before the first scrape."""

STEP_BY_STEP = r"sum_over_time\(\(\s*last_over_time\(%s\[10m\]\) - last_over_time\("
SELECTOR = re.compile(r"\b(gateway_\w+|up)\{([^{}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|group_left) \(([^()]*)\)")
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}
ALL_QUERIES = [query for name in NAMES for query in queries(name)]
ALL_PANELS = [(name, panel) for name in NAMES for panel in panels(name)]


def documented() -> dict[str, tuple[str, list[str]]]:
    """The type and the labels of each metric of the reference."""
    rows = rows_with(read_page("metrics.md"), "metric", "type", "labels", "over workers", "meaning")
    return {code(row["metric"]): (row["type"], codes(row["labels"])) for row in rows}


METRICS = documented()
TYPES = {name: kind for name, (kind, _) in METRICS.items()} | {"up": "gauge"}
LABELS = {name: set(labels) for name, (_, labels) in METRICS.items()} | {"up": set()}


def base(metric: str) -> str:
    """The metric of the reference that a series belongs to."""
    stem = re.sub(r"_(?:bucket|sum|count)$", "", metric)
    return stem if TYPES.get(stem) == "histogram" else metric


def selectors(query: Query) -> Iterator[tuple[str, Mapping[str, tuple[str, str]]]]:
    """Each metric of a query with its matchers, by label."""
    for metric, matchers in SELECTOR.findall(query.expression):
        found = MATCHER.findall(matchers)
        assert ",".join(f'{label}{how}"{value}"' for label, how, value in found) == matchers
        yield metric, {label: (how, value) for label, how, value in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_can_be_imported_and_changed(name: str):
    found = read_dashboard(name)
    assert found["id"] is None
    assert re.fullmatch(r"image-gateway-[a-z]+", found["uid"])
    assert found["title"].startswith("Image Gateway: ")
    assert found["tags"] == ["image-gateway"]
    assert found["editable"] is True
    assert found["schemaVersion"] == 39  # of Grafana 11; a newer one reads it too
    assert found["description"]
    assert found["refresh"]
    assert found["time"].keys() == {"from", "to"}
    # A built-in annotation would name a data source.
    assert found["annotations"]["list"] == []


def test_dashboards_differ_in_uid_and_title():
    assert len({read_dashboard(name)["uid"] for name in NAMES}) == len(NAMES)
    assert len({read_dashboard(name)["title"] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_variables_choose_data_source_job_and_instance(name: str):
    """The rules template-datasource, -job, -instance and -on-time-change-reload."""
    found = variables(name)
    assert list(found)[:3] == ["datasource", "job", "instance"]
    source = found["datasource"]
    assert (source["type"], source["query"], source["label"]) == (
        "datasource",
        "prometheus",
        "Data source",
    )
    for variable in ("job", "instance"):
        each = found[variable]
        assert (each["multi"], each["includeAll"], each["allValue"]) == (True, True, ".+")
        assert each["label"] == variable.capitalize()
    for each in found.values():
        assert each["label"]
        assert each["description"]
        if each["type"] == "query":
            assert each["datasource"]["uid"] == "${datasource}"
            assert each["refresh"] == 2
            query = each["query"]["query"]
            assert query == each["definition"]
            (metric, label) = re.fullmatch(r"label_values\((\w+)[^ ]*, (\w+)\)", query).groups()
            assert label in LABELS[metric] | ADDED_BY_PROMETHEUS


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_defined_and_used(name: str):
    macros = {"__all", "__range", "__range_s", "__interval", "__interval_ms", "__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", str(read_dashboard(name)))) - macros
    assert used == set(variables(name))


@each_row(("name", "panel"), ALL_PANELS, ids=lambda given: str(given)[:40])
def test_a_panel_is_described_and_has_a_unit(name: str, panel: Mapping[str, Any]):
    """The rules panel-title-description, panel-units, panel-datasource, panel-no-targets."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert panel["targets"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)
    for target in panel["targets"]:
        assert target["datasource"] == source
        assert target["legendFormat"]
        assert target["instant"] is not target["range"]
        # A table and a single value are of the end of the range, a graph of all of it.
        assert target["range"] == (panel["type"] == "timeseries")
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_different_ids_and_titles_and_do_not_overlap(name: str):
    everything = read_dashboard(name)["panels"]
    assert everything[0]["type"] == "row"
    assert len({panel["id"] for panel in everything}) == len(everything)
    titles = Counter(panel["title"] for panel in everything if panel["type"] != "row")
    assert titles.most_common(1)[0][1] == 1
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert taken.isdisjoint(cells)
        taken |= cells
    rows = {panel["gridPos"]["y"] for panel in everything if panel["type"] == "row"}
    for y in {y for _, y in taken} - rows:
        assert all((x, y) in taken for x in range(24)), f"a gap in line {y}"


@each_row("query", ALL_QUERIES, ids=str)
def test_a_query_reads_documented_metrics_of_the_chosen_gateways(query: Query):
    """The rules target-job and target-instance."""
    found = list(selectors(query))
    assert found
    bare = SELECTOR.sub("", query.expression)
    assert not re.search(r"\bgateway_\w+", bare), "a metric without matchers"
    named = {label for labels in GROUPING.findall(query.expression) for label in labels.split(", ")}
    known: set[str] = set(ADDED_BY_PROMETHEUS)
    for metric, matchers in found:
        assert base(metric) in LABELS, metric
        known |= LABELS[base(metric)]
        assert matchers["job"] == ("=~", "$job")
        assert matchers["instance"] == ("=~", "$instance")
        assert matchers.keys() - {"job", "instance"} <= LABELS[base(metric)], metric
    assert named - {""} <= known


@each_row("query", ALL_QUERIES, ids=str)
def test_a_query_treats_metrics_as_their_type_and_their_merging_ask_for(query: Query):
    """The rules target-rate-interval and target-counter-agg, and those of the books."""
    text = query.expression
    assert not re.search(r"\b(?:rate|irate)\((?:[^][]|\[(?!\$__rate_interval\]))*\]", text)
    for metric, _ in selectors(query):
        kind = TYPES[base(metric)]
        where = rf"{metric}\{{[^{{}}]*\}}"
        if kind == "histogram":
            assert re.search(rf"rate\({where}\[\$__rate_interval\]\)", text)
            assert "histogram_quantile(" in text
        elif metric in RUNNING_TOTALS:
            # Every gateway on a store shows the same.
            assert not re.search(rf"\b(?:sum|rate|increase)[^)]*\({where}", text)
        elif kind == "counter":
            rates = re.findall(rf"\brate\({where}\[", text)
            assert rates or (metric in OF_GATEWAYS and re.search(STEP_BY_STEP % where, text))
        elif kind == "gauge" and "scope" in LABELS[metric]:
            assert not re.search(rf"\bsum[^)]*\({where}", text)
    # A presumed charge that was corrected downwards stays in it.
    assert "gateway_cost_usd_total" not in text


def test_no_panel_shows_a_prompt():
    for name in NAMES:
        for panel in panels(name):
            assert "prompt" not in f"{panel['title']} {panel['targets']}".lower()
