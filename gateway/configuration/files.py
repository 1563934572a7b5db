"""Finds and reads the configuration files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import (
    ValidationError,
)

from gateway.access.policy import Policy, parse_policy
from gateway.configuration.expand import ConfigError, _expand
from gateway.configuration.explain import _describe
from gateway.configuration.settings import Settings

GATEWAY_FILE: Final = "gateway.yaml"
MODELS_FILE: Final = "models.yaml"


# ── finding and reading ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The files of the configuration; all of them exist."""

    gateway: Path
    models: Path


def find_config(explicit: Path | None, cwd: Path) -> ConfigFiles:
    """Looks for each file beside `explicit`, or else in `cwd/config`, and then in the package.

    `explicit` is what `--config` names and must be there. Raises `ConfigError`.
    """
    if explicit is not None and not explicit.is_file():
        raise ConfigError(f"{explicit}: there is no such file.")
    folders = (explicit.parent if explicit else cwd / "config", *_shipped_folders())
    return ConfigFiles(
        gateway=explicit or _first_file(GATEWAY_FILE, folders),
        models=_first_file(MODELS_FILE, folders),
    )


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Reads `path`, with `${NAME}` taken from `environ`.

    Raises `ConfigError`, which names every key that is wrong and never shows a secret.
    """
    values = read_config(path, environ)
    try:
        return Settings.model_validate(values)
    except ValidationError as fault:
        lines = [f"{path}: {_describe(error)}" for error in fault.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def read_config(path: Path, environ: Mapping[str, str]) -> dict[Any, Any]:
    """What any YAML file of the configuration says, its `${NAME}` filled in, else unchecked.

    Raises `ConfigError`.
    """
    values = _read_yaml(path)
    return {key: _expand(item, environ, f"{path}: {key}") for key, item in values.items()}


def _shipped_folders() -> tuple[Path, Path]:
    """Where the default configuration lies: inside a wheel, or beside the package's source."""
    package = Path(__file__).resolve().parents[1]
    return package / "config", package.parent / "config"


def _first_file(name: str, folders: tuple[Path, ...]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: not found in {', '.join(str(folder) for folder in folders)}.")


class _Loader(yaml.SafeLoader):
    """YAML without the silent loss of a key that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: the key '{key.value}' is there twice.")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a file; an empty file is an empty one."""
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read: {fault}.") from None
    except yaml.MarkedYAMLError as fault:
        raise ConfigError(f"{path}: {_where(fault)}: not YAML: {fault.problem}.") from None
    except (ConfigError, yaml.YAMLError) as fault:
        raise ConfigError(f"{path}: {' '.join(str(fault).split())}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: expected keys and values, such as 'workers:'.")
    return values or {}


def _where(fault: yaml.MarkedYAMLError) -> str:
    mark = fault.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"


def unchanged(settings: Settings) -> Settings:
    """Settings as the file says."""
    return settings


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that can be read again and again (`access.policy.PolicySource`)."""

    files: ConfigFiles
    environ: Mapping[str, str]
    adjust: Callable[[Settings], Settings] = unchanged
    """What a demo makes of the settings."""

    def read_settings(self) -> Settings:
        """The settings as they stand in the file now. Raises `ConfigError`."""
        return self.adjust(load_settings(self.files.gateway, self.environ))

    def read_policy(self) -> Policy:
        """The policy as it stands in its file now. Raises `ConfigError`, `CatalogError`."""
        models = self.files.models
        return parse_policy(read_config(models, self.environ), file=str(models))

    def policy_state(self) -> object:
        """What the file system says of the policy's file: differs after every change."""
        try:
            found = self.files.models.stat()
        except OSError as fault:
            return fault.errno
        return found.st_mtime_ns, found.st_size, found.st_ino
