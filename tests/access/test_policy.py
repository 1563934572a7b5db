"""The policy: reloaded as a whole or not at all, whichever way its file changes."""

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
    """A current policy from a file, with its calls of `on_change` and `on_failure`."""

    file: Path
    loaded: list[Policy] = field(default_factory=list)
    failures: list[None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.file.write_text(TABLE, encoding="utf-8")
        self.configuration = configured(self.file)
        self.current = CurrentPolicy(
            self.configuration,
            on_change=self.loaded.append,
            on_failure=lambda: self.failures.append(None),
        )

    @property
    def default_model(self) -> str:
        return self.current().catalog.default_model

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    def check(self, times: int = 2) -> None:
        """Checks for changes. A change is loaded at the second check that sees it."""
        for _ in range(times):
            self.current.reload_if_changed()


def configured(models: Path, environ: Mapping[str, str] | None = None) -> Configuration:
    files = ConfigFiles(gateway=models.with_name("gateway.yaml"), models=models)
    return Configuration(files, environ or {})


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "models.yaml")


# ── loaded ───────────────────────────────────────────────────────────────────────────────────


def test_a_changed_file_is_loaded_once(watched: Watched):
    watched.write(LATER)
    watched.check(4)
    assert watched.default_model == "dall-e-3"
    assert [policy.catalog.default_model for policy in watched.loaded] == ["dall-e-2", "dall-e-3"]


def test_a_file_that_is_replaced_by_rename_is_loaded(watched: Watched):
    """Also if size and time are the same, as after `cp --preserve`."""
    fresh = watched.file.with_name("models.yaml.new")
    fresh.write_text(LATER, encoding="utf-8")
    before = watched.file.stat()
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fresh.stat().st_size == before.st_size
    fresh.replace(watched.file)
    watched.check()
    assert watched.default_model == "dall-e-3"


def test_a_changed_symlink_is_loaded(tmp_path: Path):
    """Kubernetes updates a mounted ConfigMap this way."""
    watched = Watched(tmp_path / "old.yaml")
    (tmp_path / "new.yaml").write_text(LATER, encoding="utf-8")
    link = tmp_path / "models.yaml"
    link.symlink_to(watched.file)
    current = CurrentPolicy(
        configured(link), on_change=watched.loaded.append, on_failure=pytest.fail
    )
    (tmp_path / "link").symlink_to(tmp_path / "new.yaml")
    (tmp_path / "link").replace(link)
    current.reload_if_changed()
    current.reload_if_changed()
    assert current().catalog.default_model == "dall-e-3"


def test_a_file_that_is_still_being_written_is_not_loaded(watched: Watched):
    """A half-written file may be valid: a table without its last models."""
    half = LATER[: LATER.index("\n  gpt-image-2:")]
    models = watched.current().catalog.models.keys()
    watched.write(half)
    watched.check(1)
    assert watched.current().catalog.models.keys() == models
    watched.write(LATER)
    watched.check(1)
    assert len(watched.loaded) == 1
    watched.check(1)
    assert watched.default_model == "dall-e-3"
    assert watched.current().catalog.models.keys() == models
    assert watched.failures == []


def test_a_requested_reload_does_not_wait_for_a_second_check(watched: Watched):
    watched.write(LATER)
    watched.current.reload()
    assert watched.default_model == "dall-e-3"
    watched.check()
    assert len(watched.loaded) == 2


def test_a_snapshot_does_not_change(watched: Watched):
    snapshot = watched.current()
    watched.write(LATER)
    watched.current.reload()
    assert snapshot.catalog.default_model == "dall-e-2"
    assert watched.current() is not snapshot


def test_a_file_with_the_same_policy_changes_nothing(watched: Watched):
    snapshot = watched.current()
    watched.write("# a comment\n" + TABLE)
    watched.check()
    watched.current.reload()
    assert watched.current() is snapshot
    assert len(watched.loaded) == 1


# ── not loaded ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [BROKEN, "", "models: [", "- a list\n", TABLE + "\nunknown_key: 1\n", "prices: ${NO_SUCH}\n"],
    ids=["key", "empty", "not-yaml", "list", "one-key-too-many", "variable"],
)
def test_a_broken_file_changes_nothing_and_counts_once(watched: Watched, text: str):
    snapshot = watched.current()
    watched.write(text)
    watched.check(5)
    assert watched.current() is snapshot
    assert (len(watched.failures), len(watched.loaded)) == (1, 1)
    assert watched.current.is_faulty


def test_a_broken_file_counts_again_after_a_requested_reload_and_after_a_change(watched: Watched):
    watched.write(BROKEN)
    watched.check()
    watched.current.reload()
    assert len(watched.failures) == 2
    watched.write(BROKEN + "\n")
    watched.check()
    assert len(watched.failures) == 3
    watched.write(TABLE)
    watched.check()
    assert not watched.current.is_faulty


def test_a_missing_file_changes_nothing_and_is_loaded_when_it_returns(watched: Watched):
    watched.file.unlink()
    watched.check(3)
    assert (watched.default_model, len(watched.failures)) == ("dall-e-2", 1)
    watched.write(LATER)
    watched.check()
    assert watched.default_model == "dall-e-3"


def test_a_repaired_file_is_loaded(watched: Watched):
    watched.write(BROKEN)
    watched.check()
    watched.write(LATER)
    watched.check()
    assert watched.default_model == "dall-e-3"


def test_a_policy_cannot_be_created_from_a_broken_file(tmp_path: Path):
    (tmp_path / "models.yaml").write_text(BROKEN, encoding="utf-8")
    with pytest.raises(CatalogError, match="unknown_model"):
        CurrentPolicy(
            configured(tmp_path / "models.yaml"), on_change=pytest.fail, on_failure=pytest.fail
        )


# ── the configuration ───────────────────────────────────────────────────────────────────────


def test_settings_are_read_from_file_and_environment_each_time(tmp_path: Path):
    file = tmp_path / "gateway.yaml"
    environ = {"TTL": "1h"}
    configuration = configured(tmp_path / "models.yaml", environ)
    file.write_text("cache: {ttl: '${TTL}'}\n")
    assert configuration.read_settings().cache.ttl_seconds == 3600
    file.write_text("cache: {ttl: 2h}\n")
    assert configuration.read_settings().cache.ttl_seconds == 7200


def test_the_message_names_file_key_and_the_nearest_key(tmp_path: Path):
    configuration = configured(tmp_path / "models.yaml")
    (tmp_path / "gateway.yaml").write_text("cache: {tll: 2h}\n")
    with pytest.raises(ConfigError, match=r"gateway\.yaml.*cache\.tll.*ttl"):
        configuration.read_settings()
    (tmp_path / "models.yaml").write_text(BROKEN, encoding="utf-8")
    with pytest.raises(CatalogError, match=r"models\.yaml.*unknown_model'.*'unknown_models'"):
        configuration.read_policy()


def test_adjust_is_applied_each_time_settings_are_read(tmp_path: Path):
    (tmp_path / "gateway.yaml").write_text("log_format: json\n")
    files = ConfigFiles(gateway=tmp_path / "gateway.yaml", models=tmp_path / "models.yaml")
    text = {"log_format": "text"}
    configuration = Configuration(files, {}, lambda settings: settings.model_copy(update=text))
    assert [configuration.read_settings().log_format for _ in range(2)] == ["text", "text"]
