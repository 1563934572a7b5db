"""The text form of all workers: as prometheus_client's own, only faster."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.metrics.exposition import Exposition
from gateway.metrics.worker_files import read_files, retire_worker
from tests.metrics.folders import Process, rendered, rendered_by_library, samples

NAMES = ("alice", 'Zoë "the cat"', "back\\slash\nline", "", "{a=b} 1")
MODES = ("livesum", "livemin", "livemax", "livemostrecent")


@contextmanager
def process(folder: Path, pid: int) -> Iterator[Process]:
    one = Process(folder, pid)
    try:
        yield one
    finally:
        one.end()


def fill(one: Process, chance: random.Random) -> None:
    for name in chance.sample(NAMES, 3):
        one.count("bought", chance.randrange(10**9) / 1e6, key=name, model="m")
        counts = {bound: chance.randrange(9) for bound in ("0.5", "10.0", "2.5", "+Inf")}
        one.observe("wait_seconds", counts, chance.random(), model=name)
    one.count("plain", chance.randrange(5))
    for mode in MODES:
        one.gauge(f"level_{mode}", mode, chance.random(), at=chance.random(), model="m")
        one.gauge(f"rest_{mode}", mode, -chance.random(), at=chance.random())


@pytest.mark.parametrize("seed", range(3))
def test_any_workers_are_shown_as_the_library_shows_them(tmp_path: Path, seed: int) -> None:
    """Also at the next scrape, with new series, dead workers and a process id used again."""
    chance = random.Random(seed)
    exposition = Exposition(tmp_path)
    for step in range(12):
        pid = chance.randrange(100, 106)
        with process(tmp_path, pid) as one:
            fill(one, chance)
        if step % 3 == 2:
            retire_worker(tmp_path, chance.randrange(100, 106))
        shown, expected = samples(rendered(exposition)), samples(rendered_by_library(tmp_path))
        assert shown == pytest.approx(expected, abs=1e-6)
        assert samples(rendered(Exposition(tmp_path))) == shown


def test_the_text_has_one_head_for_each_family(tmp_path: Path) -> None:
    for pid in (1, 2):
        with process(tmp_path, pid) as one:
            one.observe("wait_seconds", {"1.0": 2, "+Inf": pid}, 2.5, key="a")
            one.gauge("level", "livesum", pid)
    assert rendered(Exposition(tmp_path)).decode() == (
        "# HELP level About level\n"
        "# TYPE level gauge\n"
        "level 3.0\n"
        "# HELP wait_seconds About wait_seconds\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{key="a",le="1.0"} 4.0\n'
        'wait_seconds_bucket{key="a",le="+Inf"} 7.0\n'
        'wait_seconds_count{key="a"} 7.0\n'
        'wait_seconds_sum{key="a"} 5.0\n'
    )


def test_no_counter_falls_when_workers_end_in_any_order(tmp_path: Path) -> None:
    """Sums of floats depend on their order, and Prometheus takes any fall for a reset."""
    chance = random.Random(16)
    pids = list(range(100, 130))
    for pid in pids:
        with process(tmp_path, pid) as one:
            for number in range(50):
                one.count("usd", chance.randrange(10**7) / 1e6, key=str(number))
    exposition = Exposition(tmp_path)
    before = samples(rendered(exposition))
    chance.shuffle(pids)
    for pid in pids:
        retire_worker(tmp_path, pid)
        assert samples(rendered(exposition)) == before


def test_a_scrape_counts_each_worker_once_while_workers_end(tmp_path: Path) -> None:
    pids = range(100, 150)
    for pid in pids:
        with process(tmp_path, pid) as one:
            one.count("bought", 1, key="alice")
            one.observe("wait_seconds", {"+Inf": 1}, 1)

    def retire_all() -> None:
        for pid in pids:
            retire_worker(tmp_path, pid)
            time.sleep(0.01)

    retiring = threading.Thread(target=retire_all)
    exposition, scrapes = Exposition(tmp_path), 0
    retiring.start()
    while retiring.is_alive():
        shown = samples(rendered(exposition))
        assert shown['bought_total{key="alice"}'] == shown["wait_seconds_count"] == len(pids)
        scrapes += 1
    retiring.join()
    assert scrapes > 3
    assert samples(rendered(exposition))['bought_total{key="alice"}'] == len(pids)


def test_a_parent_that_died_while_it_added_a_worker_counts_it_once(tmp_path: Path) -> None:
    with process(tmp_path, 7) as one:
        one.count("bought", 5)
    own = (tmp_path / "counter_7.db").read_bytes()
    retire_worker(tmp_path, 7)
    # As between the two last steps: the worker's file is there, and the other says that it has it.
    (tmp_path / "counter_7.db").write_bytes(own)
    dead = bytearray((tmp_path / "counter_dead.db").read_bytes())
    dead[4:8] = (7).to_bytes(4, "little")
    (tmp_path / "counter_dead.db").write_bytes(dead)
    assert samples(rendered(Exposition(tmp_path))) == {"bought_total": 5}
    with process(tmp_path, 8) as one:
        one.count("bought", 1)
    retire_worker(tmp_path, 8)
    assert samples(rendered(Exposition(tmp_path))) == {"bought_total": 6}


def test_a_thousand_restarts_leave_two_files(tmp_path: Path) -> None:
    for pid in range(1, 1001):
        with process(tmp_path, pid) as one:
            one.count("bought", 1, key=f"key-{pid % 7}")
            one.observe("wait_seconds", {"+Inf": 1}, 0.25)
            one.gauge("inflight", "livesum", 1)
        retire_worker(tmp_path, pid)
    assert set(read_files(tmp_path)) == {"counter_dead.db", "histogram_dead.db"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    shown = samples(rendered(Exposition(tmp_path)))
    assert sum(value for name, value in shown.items() if name.startswith("bought")) == 1000
    assert shown["wait_seconds_sum"] == 250


@pytest.mark.parametrize("cut", [0, 5, 8, 20, 60])
def test_a_damaged_file_shows_what_can_be_read(tmp_path: Path, cut: int) -> None:
    with process(tmp_path, 1) as one:
        one.count("bought", 1)
    with process(tmp_path, 2) as one:
        one.count("bought", 1)
    whole = (tmp_path / "counter_2.db").read_bytes()
    (tmp_path / "counter_2.db").write_bytes(whole[:cut])
    assert samples(rendered(Exposition(tmp_path)))["bought_total"] == 1


@pytest.mark.parametrize("damage", [b'\x00\xff"{{{{', b'"a","b"'])
def test_a_damaged_key_hides_no_other_series(tmp_path: Path, damage: bytes) -> None:
    """Also after its worker has ended."""
    for pid in (1, 2):
        with process(tmp_path, pid) as one:
            one.count("bought", 1, key="alice")
            one.count("sold", 1)
    file = tmp_path / "counter_2.db"
    file.write_bytes(file.read_bytes().replace(b'"alice"', damage))
    expected = {'bought_total{key="alice"}': 1, "sold_total": 2}
    assert samples(rendered(Exposition(tmp_path))) == expected
    retire_worker(tmp_path, 2)
    assert samples(rendered(Exposition(tmp_path))) == expected


def test_a_full_disk_keeps_what_a_dead_worker_counted_and_ends_its_gauges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in (1, 2):
        with process(tmp_path, pid) as one:
            one.count("bought", pid)
            one.gauge("workers", "livesum", 1)

    def begin_to_write(path: Path, _: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", begin_to_write)
        with pytest.raises(OSError, match="No space"):
            retire_worker(tmp_path, 1)
    assert samples(rendered(Exposition(tmp_path))) == {"bought_total": 3, "workers": 1}
    assert not [*tmp_path.glob("*.new")]


FULL_DISK = """
import datetime, os, pathlib, resource
from types import SimpleNamespace
from gateway.metrics import Metrics

metrics, today = Metrics(), datetime.date.today()
metrics.use_policy(models=["m"], sizes=[], qualities=[], prices_as_of=today, retiring_models={})
metrics.use_keys(())
billed = SimpleNamespace(key="alice", team=None, model="m", size=None, quality=None,
                         outcome="bought", images=1, tokens={"text_in": 1}, cost_micros=5)
metrics.money.purchased(billed)
folder = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
largest = max(path.stat().st_size for path in folder.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
for number in range(300):
    billed.key = f"key-{number}"
    metrics.money.purchased(billed)
    metrics.requests.refused(billed.key, "x" * 60)
billed.key = "alice"
metrics.money.purchased(billed)
print(metrics.render().decode())
"""


def test_a_full_disk_never_fails_what_is_counted(tmp_path: Path) -> None:
    """Here a limit of file sizes, which stands for it."""
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert 'gateway_cost_usd_total{key="alice",model="m",team=""} 1e-05' in run.stdout
    assert 'key="key-0"' in run.stdout
    assert 'key="key-299"' not in run.stdout
    # None of its pages waits for room.
    for path in tmp_path.glob("*.db"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size
