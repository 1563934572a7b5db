"""The rules and alerts in `deploy/prometheus/`, and the same ones with shorter durations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent.parent / "deploy" / "prometheus"
RULE_FILES: Final = (FOLDER / "records.yml", FOLDER / "alerts.yml")

GROUPS: Final[list[dict[str, Any]]] = [
    group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]
]
RULES: Final[list[dict[str, Any]]] = [rule for group in GROUPS for rule in group["rules"]]
RECORDS: Final = {rule["record"]: rule for rule in RULES if "record" in rule}
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}

_RANGE = re.compile(r"\[(\d+[smhdw])\]|\boffset (\d+[smhdw])")


def write_shortened(folder: Path, *, range_seconds: int, for_seconds: int) -> list[Path]:
    """Writes the rule files with other durations: those of ranges and offsets, and of `for`.

    Expressions are the same otherwise, and all groups are evaluated as often.
    """

    def shorten(match: re.Match[str]) -> str:
        return f"[{range_seconds}s]" if match[1] else f"offset {range_seconds}s"

    paths = []
    for source in RULE_FILES:
        file = yaml.safe_load(source.read_text())
        for group in file["groups"]:
            group.pop("interval", None)
            for rule in group["rules"]:
                rule["expr"] = _RANGE.sub(shorten, rule["expr"])
                if "for" in rule:
                    rule["for"] = f"{for_seconds}s"
        path = folder / source.name
        path.write_text(yaml.safe_dump(file))
        paths.append(path)
    return paths


def name_of(rule: Mapping[str, Any]) -> str:
    return str(rule.get("record") or rule["alert"])
