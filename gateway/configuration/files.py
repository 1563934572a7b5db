"""Finds and reads the configuration files.

`gateway.yaml` holds the settings, which are read once per worker; `models.yaml` and `access.yaml`
hold the policy, which is read again when one of them changes. What the values mean is `settings`
and `access.policy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from gateway.access.access_file import WEBHOOK_SECRET_PREFIX, AccessFileError
from gateway.access.policy import Policy, parse_policy
from gateway.catalog import CatalogError
from gateway.configuration.expand import ConfigError, Expanded, expand
from gateway.configuration.explain import explain
from gateway.configuration.settings import Settings
from gateway.redaction import Redactor

MAX_FILE_BYTES: Final = 1024 * 1024
"""Of a configuration file. YAML takes seconds for a megabyte, in which requests are slower."""
_CONFIDENTIAL: Final = re.compile(rf"'.*(?:://|{WEBHOOK_SECRET_PREFIX}).*'", re.DOTALL)
"""What a message quotes of a file if it is the URL or the secret of a webhook."""
_READ_AS_OTHER_BASE: Final = re.compile(r"[-+]?0[0-9A-Za-z_]+|[^:]+:.*")

GATEWAY_FILE: Final = "gateway.yaml"
MODELS_FILE: Final = "models.yaml"
ACCESS_FILE: Final = "access.yaml"


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The configuration files; all of them exist."""

    gateway: Path
    models: Path
    access: Path | None = None
    """None: nothing is declared."""

    def __str__(self) -> str:
        files = (self.gateway, self.models, self.access)
        return ", ".join(str(file) for file in files if file is not None)


def find_config(explicit: Path | None, cwd: Path) -> ConfigFiles:
    """Finds each file beside `explicit`, or else in `cwd/config`, and then in the package.

    `explicit` is the argument of `--config` and must exist. Raises `ConfigError`.
    """
    if explicit is not None and not explicit.is_file():
        raise ConfigError(f"{explicit}: there is no such file.")
    package = Path(__file__).resolve().parents[1]
    folders = (
        explicit.parent if explicit else cwd / "config",
        package / "config",  # in a wheel
        package.parent / "config",  # in the repository
    )
    return ConfigFiles(
        gateway=explicit or _first_file(GATEWAY_FILE, folders),
        models=_first_file(MODELS_FILE, folders),
        access=_first_file(ACCESS_FILE, folders),
    )


def _state(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        # A missing file is a change too, and `reload` logs it.
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _first_file(name: str, folders: tuple[Path, ...]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: not found in {', '.join(str(folder) for folder in folders)}.")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that can be read repeatedly (an `access.policy.PolicySource`)."""

    files: ConfigFiles
    environ: Mapping[str, str]
    adjust: Callable[[Settings], Settings] = lambda settings: settings
    """Changes settings after they are read; `gateway demo` uses it."""

    def read_settings(self) -> Settings:
        """Reads the settings from their file. Raises `ConfigError`."""
        return self.adjust(load_settings(self.files.gateway, self.environ))

    def read_values(self) -> Expanded:
        """The values in the file of the settings, and their origins. Raises `ConfigError`."""
        return _read_expanded(self.files.gateway, self.environ)

    def read_policy(self) -> Policy:
        """Reads the policy from its files. Raises `ConfigError`, `CatalogError`."""
        models, access = self.files.models, self.files.access
        expanded = _read_expanded(models, self.environ)
        _refuse_faults(models, expanded)
        declared = None
        if access is not None:
            declared = _read_expanded(access, self.environ, loader=_AccessLoader)
            _refuse_faults(access, declared)
        try:
            return parse_policy(
                expanded.values,
                declared.values if declared is not None else None,
                file=str(models),
                access_file=str(access or ""),
            )
        except CatalogError as error:
            raise CatalogError(_redact(str(error), expanded)) from None
        except AccessFileError as error:
            message = str(error)
            raise ConfigError(_redact(message, declared) if declared else message) from None

    def policy_state(self) -> object:
        """Modification times, sizes and inodes of the policy's files: differs after every change.

        A secret file that `access.yaml` reads is none of them.
        """
        return _state(self.files.models), self.files.access and _state(self.files.access)


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Reads `path`, with references taken from `environ` and from secret files.

    Raises `ConfigError`, which names every invalid key and never shows a secret.
    """
    expanded = _read_expanded(path, environ)
    lines = [f"{path}: {fault}" for fault in expanded.faults.values()]
    settings = None
    try:
        settings = Settings.model_validate(expanded.values)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            # A value that has no reference yet makes further faults, also of its section.
            if not any(key[: len(error["loc"])] == error["loc"] for key in expanded.faults):
                is_secret = bool(expanded.origin_of(error["loc"]).files)
                lines.append(f"{path}: {_redact(explain(error, is_secret=is_secret), expanded)}")
    if lines or settings is None:
        raise ConfigError("\n".join(lines))
    return settings


def read_config(path: Path, environ: Mapping[str, str]) -> dict[Any, Any]:
    """The mapping in a YAML file, with its references expanded; nothing else is checked.

    An empty file is an empty mapping. Raises `ConfigError`.
    """
    expanded = _read_expanded(path, environ)
    _refuse_faults(path, expanded)
    values: dict[Any, Any] = expanded.values
    return values


def _refuse_faults(path: Path, expanded: Expanded) -> None:
    if expanded.faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in expanded.faults.values()))


def _read_expanded(
    path: Path, environ: Mapping[str, str], *, loader: type[_Loader] | None = None
) -> Expanded:
    try:
        values = (loader or _Loader)(_read_text(path)).get_single_data()
        if not isinstance(values, dict | None):
            raise ConfigError("expected keys and values, such as 'workers:'.")
        return expand(values or {}, environ)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = _CONFIDENTIAL.sub("'…'", str(error.problem))
        raise ConfigError(f"{path}: {position}not YAML: {problem}.") from None
    except RecursionError:
        # An alias may also name what it is a part of.
        raise ConfigError(f"{path}: its values are nested too deeply.") from None
    except (ConfigError, yaml.YAMLError) as error:
        problem = _CONFIDENTIAL.sub("'…'", " ".join(str(error).split()))
        raise ConfigError(f"{path}: {problem}") from None


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"the file is larger than {MAX_FILE_BYTES // 1024:,} KiB.")
    return data.decode("utf-8")


def _redact(message: str, expanded: Expanded) -> str:
    # Messages quote texts as literals, and parsers strip them.
    shown = {
        form for text in expanded.file_texts for form in (text, text.strip(), repr(text)[1:-1])
    }
    return Redactor(shown).text(message) if shown else message


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently use the last, and impossible values.

    PyYAML lets the errors of `int`, `date` and others out, with the value in their text.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            line = node.start_mark.line + 1
            message = f"line {line}: this is no date, number or other value of its type."
            raise ConfigError(message) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: the key '{key.value}' is there twice.")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _AccessLoader(_Loader):
    """Leaves some numbers of YAML 1.1 as texts.

    `0042` would be octal, `0x42` base 16 and `12:30` base 60, but in a label or a name they mean
    what is written.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        if _READ_AS_OTHER_BASE.fullmatch(node.value):
            return node.value
        return super().construct_yaml_int(node)


_AccessLoader.add_constructor("tag:yaml.org,2002:int", _AccessLoader.construct_yaml_int)
