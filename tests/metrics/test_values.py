"""The numbers behind the series: when they are in the file of their process, and in which one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from gateway.metrics.admission import Admission
from gateway.metrics.exposition import Exposition
from gateway.metrics.series import Factory, Labelled, Observations
from gateway.metrics.values import FOLDER, Value
from tests.metrics.folders import rendered, rendered_by_library, samples

BOUNDS = (0.0015, 0.3, 5.0)
OBSERVED = (0.0, 0.0015, 0.00150049, 0.3, 0.3000001, 0.31, 4.9999999, 5.0, 5.000001, 7.0, 1000.0)


@pytest.fixture(name="folder")
def create_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def create() -> Factory:
    return Factory(CollectorRegistry(), Admission(None))


def counted(folder: Path) -> dict[str, float]:
    """What another process reads now; our reader and the library's agree."""
    text = rendered(Exposition(folder))
    assert samples(text) == samples(rendered_by_library(folder))
    return samples(text)


def test_each_amount_is_in_the_file_at_once(folder: Path) -> None:
    """A worker may be killed as soon as its answer has left, and is counted all the same."""
    counter, gauge = create().counter("answers_total", "Answers"), create().gauge("open", "Open")
    for number in range(1, 4):
        counter.inc()
        gauge.inc(2)
        found = counted(folder)
        assert found["gateway_answers_total"] == number
        assert found["gateway_open"] == 2 * number
    gauge.inc(-1)
    assert counted(folder)["gateway_open"] == 5
    gauge.set(0)
    assert counted(folder)["gateway_open"] == 0


def test_a_series_counts_on_when_the_file_of_its_process_has_grown(folder: Path) -> None:
    counters = create().counters("answers_total", "Answers", ["key"])
    first = counters[("first",)]
    first.inc()
    (path,) = folder.iterdir()
    size = path.stat().st_size
    for number in range(3000):
        counters[(f"key-{number}",)].inc(number)
    assert path.stat().st_size > 2 * size
    first.inc(2)
    found = counted(folder)
    assert found['gateway_answers_total{key="first"}'] == 3
    assert all(found[f'gateway_answers_total{{key="key-{n}"}}'] == n for n in range(3000))


def test_the_latest_of_a_gauge_counts(folder: Path) -> None:
    gauge = create().gauge("entries", "Entries", workers="livemostrecent")
    for value in (7, 3):
        gauge.set(value)
        assert counted(folder)["gateway_entries"] == value


def test_a_forked_process_counts_into_a_file_of_its_own(folder: Path) -> None:
    counter = create().counter("answers_total", "Answers")
    counter.inc(5)
    child = os.fork()
    if child == 0:
        counter.inc(2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    counter.inc()
    assert {path.name for path in folder.glob("counter_*")} == {
        f"counter_{os.getpid()}.db",
        f"counter_{child}.db",
    }
    assert counted(folder)["gateway_answers_total"] == 8
    # That is its own, not added to the other by the reader.
    (folder / f"counter_{os.getpid()}.db").unlink()
    assert counted(folder)["gateway_answers_total"] == 2


@pytest.mark.parametrize("loss", ["folder", "variable"])
def test_a_forked_process_without_a_folder_leaves_the_files_of_its_parent_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    counters = create().counters("answers_total", "Answers", ["key"])
    series = [counters[(key,)] for key in "abc"]
    for each in series:
        each.inc()
    monkeypatch.delenv(FOLDER) if loss == "variable" else monkeypatch.setenv(FOLDER, "/nowhere")
    child = os.fork()
    if child == 0:
        for each in series:
            each.inc(5)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert set(counted(folder).values()) == {1}


def test_a_worker_with_the_process_id_of_an_earlier_one_counts_on(folder: Path) -> None:
    def count_in_child() -> None:
        """A process that is killed when it has counted three."""
        if (child := os.fork()) == 0:
            counter = create().counter("answers_total", "Answers")
            for _ in range(3):
                counter.inc()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        # In the place of a system that gives the number again.
        (path,) = folder.glob(f"counter_*{child}.db")
        path.rename(folder / f"counter_{os.getpid()}.db")

    count_in_child()
    assert counted(folder)["gateway_answers_total"] == 3
    counter = create().counter("answers_total", "Answers")
    counter.inc()
    assert counted(folder)["gateway_answers_total"] == 4


@pytest.mark.parametrize("has_files", [False, True])
def test_observations_are_in_the_buckets_that_the_library_finds(
    has_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_files:
        monkeypatch.setenv(FOLDER, str(tmp_path))
    registries = [CollectorRegistry(), CollectorRegistry()]
    ours = Observations("s", "Times", registry=registries[0], buckets=BOUNDS)
    theirs = Histogram("t", "Times", registry=registries[1], buckets=BOUNDS)
    for seconds in OBSERVED:
        ours.observe(seconds)
        theirs.observe(round(seconds, 6))
    found, expected = (
        [
            (sample.name[2:], sample.labels, sample.value)
            for metric in registry.collect()
            for sample in metric.samples
        ]
        for registry in registries
    )
    assert found == expected
    assert len(found) == len(BOUNDS) + 3


def test_what_one_process_counts_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    labelled: Labelled[Observations] = create().histograms("s", "Times", ["outcome"])
    labelled[("hit",)].observe(1)
    value = Value("gauge", "n", "n", (), (), "Text", "livesum")
    value.inc(2)
    value.set(1.5)
    assert value.get() == 1.5
