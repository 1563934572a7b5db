"""The `Cache-Control` of a request, and the cache policy that it and its key come to.

Syntax and meaning are RFC 9111's; `docs/reference/cache.md#directives` lists the directives that
are read. The gateway's own headers are `request.headers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from gateway.frozen import frozen
from gateway.images import MAX_AGE_SECONDS, Reuse

# Possessive, so that 64 KiB of quotes leave no state to backtrack into.
_LIST_ELEMENT: Final = re.compile(r'(?>(?:[^,"]++|"(?>(?:[^"\\]++|\\.)*)"?+)+)', re.DOTALL)
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)
_DELTA_SECONDS: Final = re.compile(r"[0-9]+")


@frozen
class CacheControl:
    """The directives of one request; the defaults are those of a request without any."""

    no_cache: bool = False
    """`no-cache` or `max-age=0`."""
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: int | None = None
    """Above zero; None beside `no_cache`, which is stricter."""

    @property
    def overrides_reuse(self) -> bool:
        """Whether the key's `reuse` setting does not apply to this request."""
        has_age = self.max_age_seconds is not None
        return self.no_cache or self.no_store or self.only_if_cached or has_age


@frozen
class CachePolicy:
    """Which stored images may answer a request, and whether its images are stored."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: int | None = None
    notice: str | None = None
    """For `x-gateway-notice`: whether `no-cache` or `max-age` was applied; None without either."""

    @property
    def requires_fresh(self) -> bool:
        """Whether the request refuses expired images even if upstream fails."""
        return self.no_cache or self.no_store or self.max_age_seconds is not None


def parse_cache_control(cache_control: str | None, pragma: str | None) -> CacheControl:
    """The directives in the values of both headers; None for a header that was not sent."""
    if cache_control is not None:
        directives = [_parse_directive(element) for element in list_elements(cache_control)]
        names = {name for name, _ in directives}
    else:
        # Pragma counts only without Cache-Control, and only its no-cache (RFC 9111 §5.4).
        directives = []
        elements = list_elements(pragma or "")
        names = {name for name, _ in map(_parse_directive, elements)} & {"no-cache"}
    # Of several directives the strictest holds: `docs/reference/cache.md#directives`.
    ages = [_parse_seconds(argument) for name, argument in directives if name == "max-age"]
    no_cache = "no-cache" in names or 0 in ages
    return CacheControl(
        no_cache=no_cache,
        no_store="no-store" in names,
        only_if_cached="only-if-cached" in names,
        max_age_seconds=None if no_cache else min(ages, default=None),
    )


def list_elements(value: str) -> Iterator[str]:
    """The elements of a comma-separated header; a comma in quotes separates nothing."""
    for element in _LIST_ELEMENT.findall(value) if '"' in value else value.split(","):
        if stripped := element.strip():
            yield stripped


def _parse_directive(element: str) -> tuple[str, str]:
    """Name and argument. A token and a quoted string mean the same; "" for no argument."""
    name, _, argument = element.partition("=")
    argument = argument.strip()
    if len(argument) >= 2 and argument[0] == argument[-1] == '"':
        argument = _QUOTED_PAIR.sub(r"\1", argument[1:-1])
    return name.strip().lower(), argument


def _parse_seconds(argument: str) -> int:
    # RFC 9111 §4.2.1: an invalid number of seconds makes every stored image too old.
    if _DELTA_SECONDS.fullmatch(argument) is None:
        return 0
    digits = argument.lstrip("0")
    # Python refuses to convert thousands of digits.
    return MAX_AGE_SECONDS if len(digits) > 10 else min(int(digits or "0"), MAX_AGE_SECONDS)


def resolve_cache_policy(
    cache_control: CacheControl, reuse: Reuse, *, allow_no_cache: bool
) -> CachePolicy:
    """The policy of a request: its own directives, else its key's `reuse` setting.

    If the key does not allow `no-cache`, it and `max-age` have no effect. `reuse` needs no such
    permission, because the operator sets both.
    """
    notices = []
    if not allow_no_cache and (ignored := _freshness(cache_control)) is not None:
        notices.append(f"{ignored} was ignored: this key may not ask for new images.")
        cache_control = replace(cache_control, no_cache=False, max_age_seconds=None)
    source = cache_control if cache_control.overrides_reuse else reuse
    if (applied := _freshness(source)) is not None:
        why = "" if source is cache_control else ", as the key's reuse setting says"
        notices.append(f"{applied} was applied{why}.")
    return CachePolicy(
        no_cache=source.no_cache,
        no_store=cache_control.no_store,
        only_if_cached=cache_control.only_if_cached,
        max_age_seconds=source.max_age_seconds,
        notice=" ".join(notices) or None,
    )


def _freshness(source: CacheControl | Reuse) -> str | None:
    """The directive that refuses images for their age; None if there is none."""
    if source.no_cache:
        return "no-cache"
    if source.max_age_seconds is not None:
        return f"max-age={source.max_age_seconds}"
    return None
