"""The command line, with budgets of teams and everyone: `python -m tests.budgeted_gateway serve …`.

The environment variable `BUDGETS` is a JSON object: limit subject → limit → maximum.
"""

from __future__ import annotations

import os

import orjson

import gateway.__main__  # first: it sets the folder of the metrics
from gateway.access import keys
from gateway.images import LimitRule
from tests.scope_limits import with_rules

keys._limit_subjects = with_rules(
    {
        subject: {limit: LimitRule(maximum) for limit, maximum in limits.items()}
        for subject, limits in orjson.loads(os.environ["BUDGETS"]).items()
    }
)
gateway.__main__.main()
