"""`docs/reference/metrics.md` names every metric, with its type and labels."""

from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from tests.docs.pages import code, codes, read_page, rows_below, rows_with
from tests.rows import each_row

PAGE = read_page("metrics.md")
ROWS = rows_with(PAGE, "metric", "type", "labels", "over workers", "meaning")
OVER_WORKERS = {
    "livesum": "sum",
    "livemax": "maximum",
    "livemin": "minimum",
    "livemostrecent": "most recent",
}


def registered():
    """Every metric by the name that `/metrics` shows."""
    registry = CollectorRegistry()
    Metrics(registry)  # registers itself
    metrics = set(registry._collector_to_names)
    assert metrics
    return {
        f"{metric._name}_total" if metric._type == "counter" else metric._name: metric
        for metric in metrics
    }


METRICS = registered()


def name_of(row):
    return code(row["metric"])


def test_the_page_names_exactly_the_metrics():
    assert sorted(map(name_of, ROWS)) == sorted(METRICS)


@each_row("row", ROWS, ids=name_of)
def test_type_and_labels_of_a_metric(row):
    metric = METRICS[name_of(row)]
    assert row["type"] == metric._type
    assert codes(row["labels"]) == list(metric._labelnames)


@each_row("row", ROWS, ids=name_of)
def test_how_a_metric_is_merged_over_workers(row):
    mode = getattr(METRICS[name_of(row)], "_multiprocess_mode", "livesum")
    assert row["over workers"] == OVER_WORKERS[mode]


def test_the_page_describes_every_label():
    documented = {name for row in rows_below(PAGE, "Labels") for name in codes(row["label"])}
    used = {name for metric in METRICS.values() for name in metric._labelnames}
    assert documented == used - {"version", "python"}  # self-explanatory
