"""Limits of teams and of everyone, for tests of what enforces them.

`POST /admin/teams` sets them as an administrator does; this is for tests without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gateway.access import keys
from gateway.images import LimitRule, LimitSubject

Rules = Mapping[str, Mapping[str, LimitRule]]
"""Limit subject → limit → rule."""

_read_subjects = keys._limit_subjects


def with_rules(rules: Rules) -> Callable[[keys.KeyRecord], tuple[LimitSubject, ...]]:
    """In place of `access.keys._limit_subjects`: the key's own rules and these."""

    def limit_subjects(record: keys.KeyRecord) -> tuple[LimitSubject, ...]:
        return tuple(
            replace(subject, rules={**subject.rules, **rules.get(subject.name, {})})
            for subject in _read_subjects(record)
        )

    return limit_subjects
