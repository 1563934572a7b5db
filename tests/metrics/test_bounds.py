"""The bound of a family's series, one for all workers and their replacements; no amount is lost."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics.admission import FILE, Admission
from gateway.metrics.labels import MAX_KEYS, OTHER, Labels
from gateway.metrics.series import Bounded, Factory

MOST: Final = 20
LABELS: Final = ("key", "team", "model", "kind")


def family(folder: Path | None) -> tuple[Bounded, CollectorRegistry]:
    registry = CollectorRegistry()
    create = Factory(registry, Admission(folder))
    folds = (["key", "team"], ["model"])
    return create.bounded("tokens_total", "Tokens", LABELS, most=MOST, folds=folds), registry


def found(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """The amounts by labels."""
    return {
        tuple(sample.labels[label] for label in LABELS): sample.value
        for one in registry.collect()
        for sample in one.samples
    }


def test_workers_and_their_replacements_share_one_bound(tmp_path: Path) -> None:
    chance, series = random.Random(1), set()
    total = dict.fromkeys(("in", "out"), 0)
    counted = dict.fromkeys(("in", "out"), 0.0)
    for _ in range(30):
        workers = [family(tmp_path) for _ in range(4)]
        for _ in range(200):
            key, model = f"key-{chance.randrange(10_000)}", f"model-{chance.randrange(100)}"
            kind = chance.choice(("in", "out"))
            chance.choice(workers)[0][key, "team", model, kind].inc(3)
            total[kind] += 3
        for _, registry in workers:
            series |= set(found(registry))
            for (*_, kind), amount in found(registry).items():
                counted[kind] += amount
    own = {labels for labels in series if labels[0] != OTHER}
    assert len(own) == MOST
    assert {labels for labels in series - own if labels[2] == OTHER} == {
        (OTHER, OTHER, OTHER, "in"),
        (OTHER, OTHER, OTHER, "out"),
    }
    assert len(series) <= MOST + MOST // 4 + 2
    assert counted == total
    assert len((tmp_path / FILE).read_bytes().splitlines()) <= MOST + MOST // 4


def test_a_series_that_has_room_keeps_it(tmp_path: Path) -> None:
    first, _ = family(tmp_path)
    for number in range(MOST):
        first[f"key-{number}", "", "model", "in"].inc()
    for folder in (tmp_path, tmp_path):  # two later workers
        later, registry = family(folder)
        for number in range(2 * MOST):
            later[f"key-{2 * MOST - 1 - number}", "", "model", "in"].inc()
        own = {key for key, *_ in found(registry)} - {OTHER}
        assert own == {f"key-{number}" for number in range(MOST)}
        assert found(registry)[OTHER, OTHER, "model", "in"] == MOST


def test_refused_labels_take_no_memory() -> None:
    bounded, _ = family(None)
    for number in range(10 * MOST):
        bounded[f"key-{number}", "", "model", "in"].inc()
    assert len(bounded) == MOST + 1


def test_a_worker_without_room_on_the_disk_counts_as_other_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded, registry = family(tmp_path)

    def full(*_given: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        bounded["alice", "", "model", "in"].inc()
    bounded["alice", "", "model", "in"].inc()
    assert found(registry) == {(OTHER, OTHER, OTHER, "in"): 1, ("alice", "", "model", "in"): 1}


def test_half_a_line_is_no_series(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'["tokens_total/0","al\n["another_total/0","x"]\n["tokens')
    bounded, registry = family(tmp_path)
    for _ in range(2):
        bounded["alice", "", "model", "in"].inc()
    assert sum(found(registry).values()) == 2


def test_keys_beyond_the_oldest_have_no_label_from_the_first_moment_on() -> None:
    labels = Labels()
    assert labels.key("any") == OTHER  # until the keys are known
    labels.use_keys(f"key-{number}" for number in range(MAX_KEYS - 1))
    assert [labels.key(name) for name in ("key-7", "new", "newer")] == ["key-7", "new", OTHER]
    labels.use_keys(f"key-{number}" for number in range(MAX_KEYS))
    assert labels.key("new") == OTHER
