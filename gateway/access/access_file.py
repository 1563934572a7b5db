"""`access.yaml`: the limits of everyone, teams, keys and webhooks that a file declares.

A declared key has no record in the store: workers know it from the file, and it ends when it is
removed from there. Its id follows from its name, so its counters and ledger records outlive a
restart. The admin API refuses to change what a file declares (`declared_in_file`). See
`docs/reference/access.md`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar, get_args

from pydantic import BaseModel

from gateway.access.key_records import (
    PREFIX_CHARACTERS,
    KeyRecord,
    KeySpec,
    SecretHash,
    parse_spec,
)
from gateway.access.limit_values import record_limits
from gateway.access.specs import parse_model
from gateway.access.subject_records import EveryoneSpec, NewTeam, SubjectRecord, TeamSpec
from gateway.errors import INVALID_REQUEST, MAX_ECHO, ErrorCode, GatewayError, InvalidRequest
from gateway.events import EVENT_KINDS, Webhook, WebhookFormat
from gateway.net.guard import LinkBlocked, parse_link
from gateway.values import nearest

MIN_SECRET: Final = 16
"""Characters of a key's secret, as of every token."""
MAX_SECRET: Final = 512
MAX_DECLARED: Final = 1000
"""Keys, or teams, of the file. Every worker reads all of them whenever it changes: the API has no
such bound."""
MAX_WEBHOOKS: Final = 100
WEBHOOK_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what such a secret starts with

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")
_SECRET: Final = re.compile(r"[!-~]+")
_CONFIDENTIAL: Final = re.compile(rf"://|{WEBHOOK_SECRET_PREFIX}")
_SECTIONS: Final = ("everyone", "teams", "keys", "webhooks")
_KEY_FIELDS: Final = (*KeySpec.model_fields, "sha256", "secret")
_WEBHOOK_FIELDS: Final = ("url", "format", "secret", "events", "teams")
_SWITCHES: Final = {"true": True, "false": False}

M = TypeVar("M", bound=BaseModel)


class AccessFileError(ValueError):
    """The file cannot be used. The message names the file, the key and the remedy."""


@dataclass(frozen=True, slots=True)
class AccessFile:
    """What a file declares."""

    everyone: SubjectRecord | None = None
    """None: it has no limits, and the admin API may set some."""
    teams: Mapping[str, SubjectRecord] = field(default_factory=lambda: MappingProxyType({}))
    keys: Mapping[str, KeyRecord] = field(default_factory=lambda: MappingProxyType({}))
    """By name."""
    webhooks: tuple[Webhook, ...] = ()
    file: str = ""
    """Its path; empty if there is none."""
    secrets: Mapping[str, KeyRecord] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )
    """The keys by the hash of their secret."""
    ids: Mapping[str, KeyRecord] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    version: int = field(default_factory=itertools.count(1).__next__, compare=False)
    """Different in each file that this process has read."""

    @property
    def name(self) -> str:
        """The file's name for clients, which never see a path."""
        return PurePath(self.file).name

    def refuse(self, what: str) -> GatewayError:
        """The 409 for a change of `what`, such as "key 'shop'", by the admin API or a command."""
        return GatewayError(
            f"{self.name} declares {what}. Make this change in that file.",
            type=INVALID_REQUEST,
            code=ErrorCode.DECLARED_IN_FILE,
        )


NOTHING: Final = AccessFile()
"""Of a gateway without the file."""


def declared_id(name: str) -> str:
    """The id of a declared key."""
    return f"key_{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def parse_access(
    data: Mapping[str, Any], *, file: str, models: Collection[str], has_others: bool = False
) -> AccessFile:
    """What `data` declares, read from `file`. Raises `AccessFileError`, which names both.

    `models` are those that there are; with `has_others` any other name may be one too.
    """
    parser = _Parser(file, models, has_others)
    parser.check_names("", data, _SECTIONS)
    keys = parser.keys(data.get("keys"))
    everyone = data.get("everyone")
    return AccessFile(
        everyone=None if everyone is None else parser.everyone(everyone),
        teams=MappingProxyType(parser.teams(data.get("teams"))),
        keys=MappingProxyType({key.name: key for key in keys}),
        webhooks=tuple(parser.webhooks(data.get("webhooks"))),
        file=file,
        secrets=MappingProxyType({key.secrets[0].sha256: key for key in keys}),
        ids=MappingProxyType({key.id: key for key in keys}),
    )


@dataclass(frozen=True, slots=True)
class _Parser:
    file: str
    models: Collection[str]
    has_others: bool

    # ── everyone and teams ──────────────────────────────────────────────────────────────────

    def everyone(self, data: object) -> SubjectRecord:
        fields = self.mapping("everyone", data)
        self.check_names("everyone", fields, EveryoneSpec.model_fields)
        with self.located("everyone"):
            spec = parse_model(EveryoneSpec, _as_json(fields))
        return SubjectRecord(**record_limits(spec.limits or {}))

    def teams(self, data: object) -> dict[str, SubjectRecord]:
        teams = self.mapping("teams", data)
        if len(teams) > MAX_DECLARED:
            self.fail("teams", f"at most {MAX_DECLARED} are possible, but there are {len(teams)}")
        found: dict[str, SubjectRecord] = {}
        for name, fields in teams.items():
            # YAML has more than one way to write a number.
            if str(name) in found:
                self.fail("teams", f"'{_shown(name)}' is there twice")
            found[str(name)] = self.team(name, fields)
        return found

    def team(self, name: object, data: object) -> SubjectRecord:
        where = f"teams.{_shown(name)}"
        fields = self.mapping(where, data)
        self.check_names(where, fields, TeamSpec.model_fields)
        with self.located(where):
            spec = parse_model(NewTeam, {"name": _text(name), **_as_json(fields)})
        self.check_models(where, spec.models or ())
        return SubjectRecord(name=spec.name, **spec.record_fields())

    # ── keys ────────────────────────────────────────────────────────────────────────────────

    def keys(self, data: object) -> list[KeyRecord]:
        items = self.items("keys", data, max_items=MAX_DECLARED)
        keys = [self.key(f"keys[{index}]", item) for index, item in enumerate(items)]
        names: dict[str, int] = {}
        secrets: dict[str, int] = {}
        for index, key in enumerate(keys):
            if (other := names.setdefault(key.name, index)) != index:
                self.fail(
                    f"keys[{index}].name", f"'{key.name}' is the name of keys[{other}] already"
                )
            if (other := secrets.setdefault(key.secrets[0].sha256, index)) != index:
                self.fail(f"keys[{index}]", f"its secret is that of keys[{other}] already")
        return keys

    def key(self, where: str, data: object) -> KeyRecord:
        fields = self.mapping(where, data)
        self.check_names(where, fields, _KEY_FIELDS)
        sha256, prefix = self.secret(where, fields)
        given = {n: v for n, v in fields.items() if n not in ("sha256", "secret")}
        if isinstance(expiry := given.get("expires_at"), str) and not expiry.strip().isdigit():
            # A duration would begin again whenever the file is read.
            self.fail(f"{where}.expires_at", "expected Unix seconds such as 1798761600")
        with self.located(where):
            spec = parse_spec(_as_json(given))
        self.check_models(where, spec.models or ())
        return KeyRecord(
            id=declared_id(spec.name),
            prefix=prefix,
            secrets=(SecretHash(sha256=sha256),),
            created_at=0,  # they are the oldest keys
            declared_in=PurePath(self.file).name,
            **spec.record_fields(),
        )

    def secret(self, where: str, fields: Mapping[str, Any]) -> tuple[str, str]:
        """The secret's hash, and how it begins. No message shows any of it."""
        sha256, secret = fields.get("sha256"), fields.get("secret")
        if (sha256 is None) == (secret is None):
            self.fail(where, "one of 'sha256' and 'secret' must be set")
        if sha256 is not None:
            if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256.strip()):
                self.fail(f"{where}.sha256", "expected the 64 hexadecimal digits of a SHA-256")
            return sha256.strip().lower(), ""
        is_usable = isinstance(secret, str) and _SECRET.fullmatch(secret) is not None
        if not is_usable or not MIN_SECRET <= len(str(secret)) <= MAX_SECRET:
            self.fail(
                f"{where}.secret",
                f"expected {MIN_SECRET} to {MAX_SECRET} printable ASCII characters without spaces",
            )
        return hashlib.sha256(str(secret).encode()).hexdigest(), str(secret)[:PREFIX_CHARACTERS]

    # ── webhooks ────────────────────────────────────────────────────────────────────────────

    def webhooks(self, data: object) -> Iterator[Webhook]:
        items = self.items("webhooks", data, max_items=MAX_WEBHOOKS)
        for index, item in enumerate(items):
            yield self.webhook(f"webhooks[{index}]", item)

    def webhook(self, where: str, data: object) -> Webhook:
        fields = self.mapping(where, data)
        self.check_names(where, fields, _WEBHOOK_FIELDS)
        return Webhook(
            self.url(f"{where}.url", fields.get("url")),
            format=self.choice(f"{where}.format", fields.get("format", "generic")),
            secret=self.webhook_secret(f"{where}.secret", fields.get("secret")),
            events=self.events(f"{where}.events", fields.get("events")),
            teams=self.team_names(f"{where}.teams", fields.get("teams")),
        )

    def url(self, where: str, value: object) -> str:
        # It may contain a secret, as those of Slack do: no message shows it.
        try:
            parse_link(value if isinstance(value, str) else "")
        except LinkBlocked:
            self.fail(where, "expected a URL such as https://example.com/hook")
        return str(value)

    def choice(self, where: str, value: object) -> WebhookFormat:
        if value not in get_args(WebhookFormat):
            self.fail_for(where, value, get_args(WebhookFormat))
        return "slack" if value == "slack" else "generic"

    def webhook_secret(self, where: str, value: object) -> str | None:
        if value is None:
            return None
        text = value if isinstance(value, str) else ""
        encoded = text.removeprefix(WEBHOOK_SECRET_PREFIX)
        is_base64 = _BASE64.fullmatch(encoded) is not None and len(encoded) % 4 == 0
        # Without the prefix, receivers' libraries and the sender would read it differently.
        is_usable = text.startswith(WEBHOOK_SECRET_PREFIX) and is_base64
        if not is_usable or not MIN_SECRET <= len(encoded) <= MAX_SECRET:
            self.fail(
                where, f"expected {WEBHOOK_SECRET_PREFIX} and at least 16 characters of base64"
            )
        return text

    def events(self, where: str, value: object) -> frozenset[str] | None:
        if value is None:
            return None
        names = [str(item) for item in self.items(where, value, max_items=MAX_WEBHOOKS)]
        for name in names:
            if name not in EVENT_KINDS:
                self.fail_for(where, name, EVENT_KINDS)
        return frozenset(names)

    def team_names(self, where: str, value: object) -> frozenset[str] | None:
        if value is None:
            return None
        names = [str(item) for item in self.items(where, value, max_items=MAX_DECLARED)]
        for name in names:
            with self.located(where):
                parse_model(NewTeam, {"name": name})
        return frozenset(names)

    # ── shapes ──────────────────────────────────────────────────────────────────────────────

    def mapping(self, where: str, data: object) -> Mapping[Any, Any]:
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            self.fail(where, "expected keys and values")
        return data

    def items(self, where: str, data: object, *, max_items: int) -> Sequence[object]:
        if data is None:
            return ()
        if not isinstance(data, list):
            self.fail(where, "expected a list")
        if len(data) > max_items:
            self.fail(where, f"at most {max_items} are possible, but there are {len(data)}")
        return data

    def check_names(self, where: str, data: Mapping[Any, Any], known: Collection[str]) -> None:
        for name in data:
            if name not in known:
                key = f"{where}.{_shown(name)}" if where else _shown(name)
                near = nearest(str(name), known)
                self.fail("", f"unknown key '{key}'. Did you mean '{near}'?")

    def check_models(self, where: str, models: Collection[str]) -> None:
        for model in models:
            if model not in self.models and not self.has_others:
                self.fail_for(f"{where}.models", model, self.models)

    def fail_for(self, where: str, value: object, known: Collection[str]) -> NoReturn:
        shown, choices = _shown(value), ", ".join(known)
        near = nearest(shown, known)
        self.fail(where, f"'{shown}' is none of {choices}. Did you mean '{near}'?")

    @contextmanager
    def located(self, where: str) -> Iterator[None]:
        """Faults of what an administrator sets, as faults of the file."""
        try:
            yield
        except InvalidRequest as error:
            self.fail(where, error.message)

    def fail(self, where: str, problem: str) -> NoReturn:
        location = f"{self.file}: {where}" if where else self.file
        end = "" if problem.endswith((".", "?")) else "."
        raise AccessFileError(f"{location}: {problem}{end}") from None


def _shown(value: object) -> str:
    """A value for a message, but no URL and no secret of a webhook in the place of another."""
    text = str(value)
    return "…" if _CONFIDENTIAL.search(text) else text[:MAX_ECHO]


def _text(value: object) -> object:
    """YAML reads `4711` as a number; a name or a label means the text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_json(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields as they would be in a JSON body: values of the environment are texts."""
    given = {str(name): value for name, value in fields.items() if value is not None}
    convert: Mapping[str, Callable[[Any], Any]] = {
        "name": _text,
        "team": _text,
        "labels": _labels,
        "limits": _limits,
        "hits_report_usage": _switch,
        "allow_no_cache": _switch,
    }
    return {name: convert.get(name, _same)(value) for name, value in given.items()}


def _same(value: Any) -> Any:
    return value


def _labels(labels: Any) -> Any:
    return {str(k): _text(v) for k, v in labels.items()} if isinstance(labels, Mapping) else labels


def _limits(limits: Any) -> Any:
    return {str(k): _limit(v) for k, v in limits.items()} if isinstance(limits, Mapping) else limits


def _limit(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _number(v) if k == "max" else v for k, v in value.items()}
    return _number(value)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return Decimal(value.strip())
    except InvalidOperation:
        return value


def _switch(value: Any) -> Any:
    return _SWITCHES.get(value.strip().lower(), value) if isinstance(value, str) else value
