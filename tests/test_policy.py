"""Policy: read wholly or not at all, from files as operators and editors change them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.access.policy import CurrentPolicy, Policy
from gateway.catalog import CatalogError
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import ConfigFiles, Configuration
from tests.catalogs import SHIPPED

TABLE = SHIPPED.read_text(encoding="utf-8")
LATER = TABLE.replace("default_model: dall-e-2 ", "default_model: dall-e-3 ")
BROKEN = TABLE.replace("unknown_models:", "unknown_model:")


@dataclass
class Watched:
    """A current policy over a file, and what it tells its owner."""

    file: Path
    taken: list[Policy] = field(default_factory=list)
    failures: list[None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.file.write_text(TABLE, encoding="utf-8")
        self.configuration = configured(self.file)
        self.current = CurrentPolicy(
            self.configuration,
            on_change=self.taken.append,
            on_failure=lambda: self.failures.append(None),
        )

    @property
    def default_model(self) -> str:
        return self.current().catalog.default_model

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    def look(self, times: int = 2) -> None:
        """A change is taken at the second look that sees it."""
        for _ in range(times):
            self.current.reload_if_changed()


def configured(models: Path, environ: Mapping[str, str] | None = None) -> Configuration:
    files = ConfigFiles(gateway=models.with_name("gateway.yaml"), models=models)
    return Configuration(files, environ or {})


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "models.yaml")


# ── taken ───────────────────────────────────────────────────────────────────────────────────


def test_a_changed_file_is_taken_and_told_once(watched: Watched):
    watched.write(LATER)
    watched.look(4)
    assert watched.default_model == "dall-e-3"
    assert [policy.catalog.default_model for policy in watched.taken] == ["dall-e-2", "dall-e-3"]


def test_a_file_that_is_replaced_by_rename_is_taken(watched: Watched):
    """Also one of the same size and time, as a copy that keeps times makes it."""
    fresh = watched.file.with_name("models.yaml.new")
    fresh.write_text(LATER, encoding="utf-8")
    before = watched.file.stat()
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fresh.stat().st_size == before.st_size
    fresh.replace(watched.file)
    watched.look()
    assert watched.default_model == "dall-e-3"


def test_a_link_that_points_elsewhere_is_taken(tmp_path: Path):
    """As Kubernetes changes a mounted ConfigMap."""
    watched = Watched(tmp_path / "old.yaml")
    (tmp_path / "new.yaml").write_text(LATER, encoding="utf-8")
    link = tmp_path / "models.yaml"
    link.symlink_to(watched.file)
    current = CurrentPolicy(
        configured(link), on_change=watched.taken.append, on_failure=pytest.fail
    )
    (tmp_path / "link").symlink_to(tmp_path / "new.yaml")
    (tmp_path / "link").replace(link)
    current.reload_if_changed()
    current.reload_if_changed()
    assert current().catalog.default_model == "dall-e-3"


def test_a_file_that_is_still_being_written_is_left_alone(watched: Watched):
    """Half of it may be valid: a table that has lost its last models."""
    half = LATER[: LATER.index("\n  gpt-image-2:")]
    watched.write(half)
    watched.look(1)
    assert len(watched.current().catalog.models) == 8
    watched.write(LATER)
    watched.look(1)
    assert len(watched.taken) == 1
    watched.look(1)
    assert (watched.default_model, len(watched.current().catalog.models)) == ("dall-e-3", 8)
    assert watched.failures == []


def test_who_asks_need_not_wait_for_a_second_look(watched: Watched):
    watched.write(LATER)
    watched.current.reload()
    assert watched.default_model == "dall-e-3"
    watched.look()
    assert len(watched.taken) == 2


def test_a_snapshot_stays_as_it_was_taken(watched: Watched):
    snapshot = watched.current()
    watched.write(LATER)
    watched.current.reload()
    assert snapshot.catalog.default_model == "dall-e-2"
    assert watched.current() is not snapshot


def test_a_file_that_says_the_same_changes_nothing(watched: Watched):
    snapshot = watched.current()
    watched.write("# a comment\n" + TABLE)
    watched.look()
    watched.current.reload()
    assert watched.current() is snapshot
    assert len(watched.taken) == 1


# ── not taken ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [BROKEN, "", "models: [", "- a list\n", TABLE + "\nunknown_key: 1\n", "prices: ${NO_SUCH}\n"],
    ids=["key", "empty", "not-yaml", "list", "one-key-too-many", "variable"],
)
def test_a_broken_file_changes_nothing_and_counts_once(watched: Watched, text: str):
    snapshot = watched.current()
    watched.write(text)
    watched.look(5)
    assert watched.current() is snapshot
    assert (len(watched.failures), len(watched.taken)) == (1, 1)


def test_a_broken_file_counts_again_when_somebody_asks_and_when_it_changes(watched: Watched):
    watched.write(BROKEN)
    watched.look()
    watched.current.reload()
    assert len(watched.failures) == 2
    watched.write(BROKEN + "\n")
    watched.look()
    assert len(watched.failures) == 3


def test_a_file_that_goes_away_changes_nothing_and_may_come_back(watched: Watched):
    watched.file.unlink()
    watched.look(3)
    assert (watched.default_model, len(watched.failures)) == ("dall-e-2", 1)
    watched.write(LATER)
    watched.look()
    assert watched.default_model == "dall-e-3"


def test_a_mended_file_is_taken(watched: Watched):
    watched.write(BROKEN)
    watched.look()
    watched.write(LATER)
    watched.look()
    assert watched.default_model == "dall-e-3"


def test_nothing_starts_with_a_broken_file(tmp_path: Path):
    (tmp_path / "models.yaml").write_text(BROKEN, encoding="utf-8")
    with pytest.raises(CatalogError, match="unknown_model"):
        CurrentPolicy(
            configured(tmp_path / "models.yaml"), on_change=pytest.fail, on_failure=pytest.fail
        )


# ── the configuration ───────────────────────────────────────────────────────────────────────


def test_settings_are_read_anew_each_time_with_what_the_environment_says(tmp_path: Path):
    file = tmp_path / "gateway.yaml"
    environ = {"TTL": "1h"}
    configuration = configured(tmp_path / "models.yaml", environ)
    file.write_text("cache: {ttl: '${TTL}'}\n")
    assert configuration.read_settings().cache.ttl_seconds == 3600
    file.write_text("cache: {ttl: 2h}\n")
    assert configuration.read_settings().cache.ttl_seconds == 7200


def test_a_fault_names_file_key_and_the_nearest(tmp_path: Path):
    configuration = configured(tmp_path / "models.yaml")
    (tmp_path / "gateway.yaml").write_text("cache: {tll: 2h}\n")
    with pytest.raises(ConfigError, match=r"gateway\.yaml.*cache\.tll.*ttl"):
        configuration.read_settings()
    (tmp_path / "models.yaml").write_text(BROKEN, encoding="utf-8")
    with pytest.raises(CatalogError, match=r"models\.yaml.*unknown_model'.*'unknown_models'"):
        configuration.read_policy()


def test_what_a_demo_makes_of_the_settings_holds_at_every_reading(tmp_path: Path):
    (tmp_path / "gateway.yaml").write_text("log_format: json\n")
    files = ConfigFiles(gateway=tmp_path / "gateway.yaml", models=tmp_path / "models.yaml")
    text = {"log_format": "text"}
    configuration = Configuration(files, {}, lambda settings: settings.model_copy(update=text))
    assert [configuration.read_settings().log_format for _ in range(2)] == ["text", "text"]
