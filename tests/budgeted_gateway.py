"""The command line, with budgets of teams and everyone: `python -m tests.budgeted_gateway serve …`.

The environment variable `BUDGETS` is a JSON object: limit subject → limit → maximum.
"""

from __future__ import annotations

import os
from dataclasses import replace

import orjson

import gateway.__main__  # first: it sets the folder of the metrics
from gateway.access import keys
from gateway.images import LimitRule, LimitSubject

BUDGETS = orjson.loads(os.environ["BUDGETS"])

_read_subjects = keys._limit_subjects


def _limit_subjects(record: keys.KeyRecord) -> tuple[LimitSubject, ...]:
    return tuple(
        replace(
            subject,
            rules={
                **subject.rules,
                **{limit: LimitRule(n) for limit, n in BUDGETS.get(subject.name, {}).items()},
            },
        )
        for subject in _read_subjects(record)
    )


keys._limit_subjects = _limit_subjects
gateway.__main__.main()
