"""The dashboards of `deploy/grafana/`: their panels, and the queries that Grafana would send."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parent.parent / "deploy" / "grafana"
DASHBOARDS = GRAFANA / "dashboards"
COST, OPERATIONS = "cost-and-usage.json", "operations.json"
NAMES = (COST, OPERATIONS)

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@cache
def read_dashboard(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((DASHBOARDS / name).read_text(encoding="utf-8"))
    return found


def panels(name: str) -> list[Mapping[str, Any]]:
    """The panels that show something: all but rows, which have none of their own."""
    return [panel for panel in read_dashboard(name)["panels"] if panel["type"] != "row"]


def variables(name: str) -> dict[str, Mapping[str, Any]]:
    return {each["name"]: each for each in read_dashboard(name)["templating"]["list"]}


@dataclass(frozen=True)
class Query:
    """A query of a panel."""

    dashboard: str
    panel: str
    ref: str
    expression: str
    is_instant: bool

    def __str__(self) -> str:
        return f"{self.panel} {self.ref}"


def queries(name: str) -> Iterator[Query]:
    for panel in panels(name):
        for target in panel["targets"]:
            yield Query(name, panel["title"], target["refId"], target["expr"], target["instant"])


def query(name: str, panel: str, ref: str = "A") -> Query:
    """The query of a panel, by its title."""
    (found,) = (each for each in queries(name) if (each.panel, each.ref) == (panel, ref))
    return found


@dataclass(frozen=True)
class Selection:
    """What a user chose in Grafana, and what Grafana makes of it."""

    range_seconds: int = 600
    interval_seconds: int = 60
    rate_interval_seconds: int = 60
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Other values of variables, as PromQL; else all jobs, all teams, and so on."""

    def fill(self, expression: str) -> str:
        """Replaces the variables as Grafana does."""
        values = {
            "__range": f"{self.range_seconds}s",
            "__range_s": f"{self.range_seconds}",
            "__interval": f"{self.interval_seconds}s",
            "__interval_ms": f"{1000 * self.interval_seconds}",
            "__rate_interval": f"{self.rate_interval_seconds}s",
            "job": ".+",
            "instance": ".+",
            "team": ".*",
            "cost_centre": "cost_center",
            "window": "month",
            **self.chosen,
        }
        return _VARIABLE.sub(lambda match: values[match[1] or match[2]], expression)
