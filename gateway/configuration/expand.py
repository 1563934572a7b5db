"""Replaces `${NAME}`, `${NAME:-default}` and `${file:/path}` in the values of a file.

The only place where the environment and secret files enter the configuration. A default and a path
may contain references too: `${KEY:-${file:/run/secrets/key}}`, `${file:${FOLDER}/key}`. What a
variable or a file contains is not expanded again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from gateway.configuration.secret_files import UnreadableFile, read_secret_file

MAX_VALUES: Final = 250_000
"""Of a file. Aliases could multiply a few lines without end."""
_FILE_OPENING: Final = "${file:"
_VARIABLE_OPENING: Final = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?P<rest>\}|:-)", re.ASCII)
_SPECIAL: Final = re.compile(r"\$\{|\}")

# A URL up to a place in its user and password, and from there on.
_BEFORE_USER_INFO: Final = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#@]*")
_AFTER_USER_INFO: Final = re.compile(r"[^/?#\s]*@")
# RFC 3986 §3.2.1; a percent sign only with two digits.
_NOT_IN_USER_INFO: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~!$&'()*+,;=:%-]")

Path: TypeAlias = tuple[str | int, ...]
"""The keys that lead to a value."""


class ConfigError(Exception):
    """The configuration cannot be used.

    The message has one line per fault, which names the file, the key and the remedy.
    """


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from if it is not written in the file itself."""

    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Paths of secret files."""


@dataclass(frozen=True, slots=True)
class Expanded:
    """The values of a file after the expansion, and what it met."""

    values: Any
    """With None in the place of values that have a fault."""
    origins: Mapping[Path, Origin]
    file_texts: frozenset[str]
    """What the secret files contain: no message may show it."""
    faults: Mapping[Path, str]
    """What is wrong with a value, beginning with its key."""

    def origin_of(self, path: Iterable[str | int]) -> Origin:
        """The variables and files of the value at `path`, and of those below it."""
        prefix = tuple(path)
        found = [at for known, at in self.origins.items() if known[: len(prefix)] == prefix]
        return Origin(
            variables=tuple(name for origin in found for name in origin.variables),
            files=tuple(name for origin in found for name in origin.files),
        )


def expand(values: Any, environ: Mapping[str, str]) -> Expanded:
    """Replaces every reference in the strings of `values`.

    Raises `ConfigError` if there are too many values.
    """
    expansion = _Expansion(environ)
    expanded = expansion.value(values, ())
    return Expanded(expanded, expansion.origins, frozenset(expansion.file_texts), expansion.faults)


class _Fault(Exception):
    """A reference that has no value."""


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    default: _Parts | None


@dataclass(frozen=True, slots=True)
class _File:
    path: _Parts


_Parts: TypeAlias = "tuple[str | _Variable | _File, ...]"


@dataclass
class _Expansion:
    environ: Mapping[str, str]
    origins: dict[Path, Origin] = field(default_factory=dict)
    file_texts: set[str] = field(default_factory=set)
    faults: dict[Path, str] = field(default_factory=dict)
    values: int = 0

    def value(self, value: Any, path: Path) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise ConfigError(f"it has more than {MAX_VALUES:,} values, counting those of aliases.")
        if isinstance(value, dict):
            return {k: self.value(item, (*path, k)) for k, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, (*path, i)) for i, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        evaluation = _Evaluation(self.environ)
        try:
            text = evaluation.text(parse(value))
        except _Fault as fault:
            self.faults[path] = f"{'.'.join(map(str, path))}: {fault}"
            return None
        self.origins[path] = Origin(tuple(evaluation.variables), tuple(evaluation.files))
        self.file_texts.update(evaluation.files.values())
        return text


@dataclass
class _Evaluation:
    """The value of one string, and the variables and files that are a part of it."""

    environ: Mapping[str, str]
    variables: dict[str, None] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def text(self, parts: _Parts) -> str:
        texts = [part if isinstance(part, str) else self.reference(part) for part in parts]
        # The value of a reference may contain `@` or `/`, which would end the user info of a URL.
        # So a letter stands for each reference where the text around it is looked at.
        written = [part if isinstance(part, str) else "x" for part in parts]
        for i, part in enumerate(parts):
            before, after = "".join(written[:i]), "".join(written[i + 1 :])
            if not isinstance(part, str) and _is_user_info(before, after):
                texts[i] = _encode_user_info(texts[i])
        return "".join(texts)

    def reference(self, reference: _Variable | _File) -> str:
        if isinstance(reference, _File):
            return self.file(self.text(reference.path))
        found = self.environ.get(reference.name)
        if reference.default is None and found is None:
            raise _Fault(f"the environment variable {reference.name} is not set.")
        # As in a shell, the default also replaces an empty variable, and is not read otherwise.
        if reference.default is not None and not found:
            return self.text(reference.default)
        self.variables[reference.name] = None
        return found or ""

    def file(self, path: str) -> str:
        try:
            self.files[path] = text = read_secret_file(path)
        except UnreadableFile as error:
            raise _Fault(f"the file {' '.join(path.split())} {error}.") from None
        return text


def _is_user_info(before: str, after: str) -> bool:
    return bool(_BEFORE_USER_INFO.fullmatch(before) and _AFTER_USER_INFO.match(after))


def _encode_user_info(text: str) -> str:
    """Percent-encodes what would end the user and password of a URL; `%40` stays as it is."""
    return _NOT_IN_USER_INFO.sub(lambda match: quote(match[0], safe=""), text)


# ── the syntax ──────────────────────────────────────────────────────────────────────────────


def parse(text: str) -> _Parts:
    """The literal texts and references of a string, in order."""
    parts, _ = _parse(text, 0, is_inside=False)
    return parts


def _parse(text: str, at: int, *, is_inside: bool) -> tuple[_Parts, int]:
    """The parts from `at` to the end, or inside of a reference to its closing brace."""
    parts: list[str | _Variable | _File] = []
    while True:
        special = _SPECIAL.search(text, at)
        if special is None or special[0] == "}":
            if is_inside and special is None:
                raise _syntax_fault()
            if special is not None and not is_inside:
                parts.append(text[at : special.end()])
                at = special.end()
                continue
            end = len(text) if special is None else special.start()
            return (*parts, text[at:end]), end + 1
        parts.append(text[at : special.start()])
        reference, at = _parse_reference(text, special.start())
        parts.append(reference)


def _parse_reference(text: str, at: int) -> tuple[_Variable | _File, int]:
    opening = _VARIABLE_OPENING.match(text, at)
    if opening is not None and opening["rest"] == "}":
        return _Variable(opening["name"], None), opening.end()
    if opening is not None:
        default, at = _parse(text, opening.end(), is_inside=True)
        return _Variable(opening["name"], default), at
    if text.startswith(_FILE_OPENING, at):
        path, end = _parse(text, at + len(_FILE_OPENING), is_inside=True)
        if any(path):
            return _File(path), end
    raise _syntax_fault()


def _syntax_fault() -> _Fault:
    return _Fault("expected ${NAME}, ${NAME:-default} or ${file:/path} after $.")
