"""Labels of keys and teams, such as `cost_center: 4711`: records and reports have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import MAX_ECHO

MAX_LABELS: Final = 16
MAX_LABEL_CHARACTERS: Final = 128
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")


def parse_labels(labels: Mapping[str, Any]) -> dict[str, str]:
    """Checked labels; those that are None are left out. Raises `ValueError` with a sentence."""
    found = {name: _value(name, value) for name, value in labels.items() if value is not None}
    for name in found:
        if NAME.fullmatch(name) is None:
            raise ValueError(
                f"Invalid label '{name[:MAX_ECHO]}': a label's name has 1 to 63 of the characters "
                "A-Z a-z 0-9 _ . -, and begins with a letter or _."
            )
    if len(found) > MAX_LABELS:
        raise ValueError(f"At most {MAX_LABELS} labels are possible, but there are {len(found)}.")
    return found


def _value(name: str, value: object) -> str:
    is_text = isinstance(value, str) and 0 < len(value) <= MAX_LABEL_CHARACTERS
    if not is_text or not str(value).isprintable():
        raise ValueError(
            f"Invalid label '{name[:MAX_ECHO]}': expected a text of 1 to {MAX_LABEL_CHARACTERS} "
            f"printable characters, but got {repr(value)[:MAX_ECHO]}."
        )
    return str(value)
