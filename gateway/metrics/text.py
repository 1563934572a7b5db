"""Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable


class Writer:
    """Lines of Prometheus' text format."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._families: list[bytes] = []

    def family(self, name: str, *, kind: str, text: str) -> None:
        """Begins a family, whose samples follow."""
        described = text.replace("\\", r"\\").replace("\n", r"\n")
        self._end_family()
        self._lines.append(f"# HELP {name} {described}\n# TYPE {name} {kind}\n")

    def sample(self, start: str, value: float) -> None:
        """Adds a sample, which begins with `sample_start`."""
        self._lines.append(f"{start}{float(value)!r}\n")

    def encode(self) -> bytes:
        self._end_family()
        return b"".join(self._families)

    def _end_family(self) -> None:
        # One after the other: all together would keep the event loop waiting for milliseconds.
        self._families.append("".join(self._lines).encode())
        self._lines.clear()


def sample_start(name: str, labels: Iterable[str], values: Iterable[str]) -> str:
    """A sample's line up to its value."""
    pairs = sorted(zip(labels, values, strict=True))
    shown = ",".join([f'{label}="{_escaped(value)}"' for label, value in pairs])
    return f"{name}{{{shown}}} " if shown else f"{name} "


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
