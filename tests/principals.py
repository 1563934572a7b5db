"""Principals with limits, for tests of what counts them."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.images import Expected, LimitRule, LimitSubject, Principal

Limits = Mapping[str, int | LimitRule]
"""By limit name: a maximum that is enforced, or a whole rule."""

EXPECTED = (Expected("keys", "k", b""),)
"""Records as an empty store has them."""


def make_principal(
    key_id: str,
    limits: Limits | None = None,
    *,
    team: str | None = None,
    team_limits: Limits | None = None,
    everyone_limits: Limits | None = None,
    expected: tuple[Expected, ...] = EXPECTED,
) -> Principal:
    """The key `key_id`, whose name is its id."""
    key = LimitSubject(f"key:{key_id}", "key", key_id, _rules(limits))
    teams = [LimitSubject(f"team:{team}", "team", team, _rules(team_limits))] if team else []
    everyone = LimitSubject("everyone", "everyone", "", _rules(everyone_limits))
    return Principal(key_id, key_id, team, (key, *teams, everyone), expected)


def _rules(limits: Limits | None) -> Mapping[str, LimitRule]:
    return {
        name: rule if isinstance(rule, LimitRule) else LimitRule(rule)
        for name, rule in (limits or {}).items()
    }
