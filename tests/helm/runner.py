"""Renders and checks the chart with Helm, in a process and a virtual environment of its own.

Helm is a library of Go, which would start threads in a process that forks. It reads
`{"chart", "versions", "cases": {name: {"release", "values"}}}` from stdin, and writes for each case
the objects, or the error of Helm or of Kubernetes' schemas.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml


def main() -> None:
    asked = json.load(sys.stdin)
    answers = {}
    with helm.Chart.load(asked["chart"]) as chart:
        for name, case in asked["cases"].items():
            try:
                answers[name] = render(chart, asked["versions"], **case)
            except (helm.HelmError, kubernetes_validate.ValidationError) as error:
                answers[name] = {"error": str(error)}
    found = {name: helm.lint(asked["chart"], c["values"]) for name, c in asked["cases"].items()}
    json.dump({"answers": answers, "lint": found}, sys.stdout)


def render(chart: Any, versions: Iterable[str], release: str, values: Any) -> dict[str, Any]:
    chart.validate_schema(values)
    texts = chart.render(values, name=release, namespace="prod")
    notes = "".join(texts.pop(name) for name in list(texts) if name.endswith("NOTES.txt"))
    objects = [one for text in texts.values() for one in yaml.safe_load_all(text) if one]
    for one in objects:
        # Those of the Prometheus Operator have their schemas elsewhere.
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            for version in versions:
                kubernetes_validate.validate(one, version, strict=True)
    return {"objects": objects, "notes": notes}


main()
