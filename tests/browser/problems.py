"""What is wrong with views, from the steps of `views.mjs`."""

from __future__ import annotations

from collections.abc import Iterator

from tests.browser.running import Steps

MAX_SHIFT = 0.02
"""Layout shift, which browsers count as good below 0.1. What a person does not notice is less."""


def problems(steps: Steps) -> Iterator[str]:
    """A line for each fault of a session, and for what is wrong with a view or a dialog."""
    for step in steps:
        if step["step"] == "session":
            for fault in step["faults"]:
                yield f"{step['name']} {step['theme']}: {fault}"
        if step["step"] != "view":
            continue
        at = f"{step['view']} {step.get('dialog', '')} {step['session']} {step['theme']}"
        at = f"{at} {step['width']}"
        if step["overflow"] > 0:
            yield f"{at}: {step['overflow']} px too wide: {step['wide']}"
        if step["shift"] > MAX_SHIFT:
            yield f"{at}: moves by {step['shift']:.3f}: {step['moved']}"
        for finding in step["axe"]:
            yield f"{at}: {finding['id']}: {finding['nodes']}"
