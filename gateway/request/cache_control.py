"""Cache-Control, and the cache policy of a request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gateway.images import MAX_AGE_SECONDS, Reuse

_LIST_ELEMENT: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)
_DELTA_SECONDS: Final = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The directives that one request sends; the defaults are those of a request without any."""

    no_cache: bool = False
    """Also said by `max-age=0`."""
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: int | None = None
    """Above zero; None beside `no_cache`, which is stricter."""

    @property
    def speaks_of_reuse(self) -> bool:
        """Whether the request itself says which stored images may answer it."""
        has_age = self.max_age_seconds is not None
        return self.no_cache or self.no_store or self.only_if_cached or has_age


def _list_elements(value: str) -> Iterator[str]:
    """The elements of a comma-separated list; commas in quotes part nothing, empty ones go."""
    for element in _LIST_ELEMENT.findall(value):
        if stripped := element.strip():
            yield stripped


# ── Cache-Control and Pragma ────────────────────────────────────────────────────────────────


def _parse_cache_control(own: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Directives with their arguments, "" for none; Pragma counts without Cache-Control."""
    if "cache-control" in own:
        yield from map(_parse_directive, _list_elements(own["cache-control"]))
        return
    pragma = map(_parse_directive, _list_elements(own.get("pragma", "")))
    yield from (directive for directive in pragma if directive[0] == "no-cache")


def _parse_directive(element: str) -> tuple[str, str]:
    """Name and argument; whether that is a token or a quoted string is the same."""
    name, _, argument = element.partition("=")
    return name.strip().lower(), _unquote(argument.strip())


def _unquote(argument: str) -> str:
    if len(argument) < 2 or argument[0] != '"' or argument[-1] != '"':
        return argument
    return _QUOTED_PAIR.sub(r"\1", argument[1:-1])


def _parse_seconds(argument: str) -> int:
    """0 for what is no number of seconds: every stored image is too old (RFC 9111 §4.2.1)."""
    if _DELTA_SECONDS.fullmatch(argument) is None:
        return 0
    digits = argument.lstrip("0")
    return MAX_AGE_SECONDS if len(digits) > 10 else min(int(digits or "0"), MAX_AGE_SECONDS)


# ── what holds in the end ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What holds for one request: which stored images may answer it, and what is stored."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: int | None = None
    notice: str | None = None
    """For `x-gateway-notice`: what became of `no-cache` and `max-age`; None without either."""

    @property
    def requires_fresh(self) -> bool:
        """Whether an older image will not do, whatever happens."""
        return self.no_cache or self.no_store or self.max_age_seconds is not None


def resolve_cache_policy(
    directives: CacheControl, reuse: Reuse, *, allow_no_cache: bool
) -> CachePolicy:
    """What holds: the request's own word where it may have one, else its key's setting.

    Without the permission `no-cache` and `max-age` are as if they had not been sent. The setting
    needs none: it was made by who gives the permission.
    """
    asked = _name_freshness(directives)
    if asked is None or allow_no_cache:
        return _weigh(directives, reuse)
    cache_policy = _weigh(replace(directives, no_cache=False, max_age_seconds=None), reuse)
    ignored = f"{asked} was ignored: this key may not ask for new images."
    return replace(cache_policy, notice=f"{ignored} {cache_policy.notice or ''}".rstrip())


def _weigh(said: CacheControl, reuse: Reuse) -> CachePolicy:
    source: CacheControl | Reuse = said if said.speaks_of_reuse else reuse
    why = "" if source is said else ", as the key's reuse setting says"
    asked = _name_freshness(source)
    return CachePolicy(
        no_cache=source.no_cache,
        no_store=said.no_store,
        only_if_cached=said.only_if_cached,
        max_age_seconds=source.max_age_seconds,
        notice=None if asked is None else f"{asked} was applied{why}.",
    )


def _name_freshness(source: CacheControl | Reuse) -> str | None:
    """What is asked of stored images' age, in the words of Cache-Control."""
    if source.no_cache:
        return "no-cache"
    if source.max_age_seconds is not None:
        return f"max-age={source.max_age_seconds}"
    return None
