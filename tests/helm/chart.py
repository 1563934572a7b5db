"""The chart of `deploy/helm`, rendered by Helm and checked against the schemas of Kubernetes.

What renders it is installed once, in a cache outside the repository: 390 MB.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import npm, python_packages

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "deploy" / "helm" / "image-gateway"
PACKAGES = ("helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0")
OPERATOR = "@kubernetes-models/prometheus-operator@6.0.0"
VERSIONS = ("1.27", "1.32", "1.37")
"""Of Kubernetes: the oldest that the chart accepts, and the newest with a schema."""
RENDER_SECONDS = 120


@dataclass(frozen=True)
class Rendered:
    """What one release consists of; with an error there is nothing."""

    objects: Sequence[Mapping[str, Any]]
    notes: str
    error: str
    lint: Mapping[str, Any]

    def all(self, kind: str) -> list[Mapping[str, Any]]:
        assert self.error == ""
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str) -> Any:
        (found,) = self.all(kind)
        return found

    @property
    def container(self) -> Any:
        (container,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return container


@dataclass(frozen=True)
class Case:
    """The values of a release."""

    values: Mapping[str, Any]
    release: str = "demo"


def render(cases: Mapping[str, Case]) -> Mapping[str, Rendered]:
    """Renders, lints and validates all cases in one process."""
    asked = {
        "chart": str(CHART),
        "versions": VERSIONS,
        "cases": {
            name: {"release": case.release, "values": case.values} for name, case in cases.items()
        },
    }
    done = subprocess.run(
        [python_packages.install_packages(*PACKAGES) / "bin" / "python", HERE / "runner.py"],
        input=json.dumps(asked),
        capture_output=True,
        check=False,
        text=True,
        timeout=RENDER_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    return {
        name: Rendered(
            objects=answer.get("objects", ()),
            notes=answer.get("notes", ""),
            error=answer.get("error", ""),
            lint=answered["lint"][name],
        )
        for name, answer in answered["answers"].items()
    }


def operator_errors(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with each object of the Prometheus Operator; empty texts if nothing is."""
    folder = npm.install_packages(OPERATOR)
    # Node finds packages beside the script that imports them.
    script = folder / "operator.mjs"
    shutil.copyfile(HERE / "operator.mjs", script)
    done = subprocess.run(
        ["node", script],
        input=json.dumps(list(objects)),
        capture_output=True,
        check=False,
        text=True,
        timeout=RENDER_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found
