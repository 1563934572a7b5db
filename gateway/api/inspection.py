"""What `configuration/` and `process/` know of this gateway, as the API shows it.

Both are above `api/`, so `process/worker` hands their functions down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol


class ShownSetting(Protocol):
    """A setting, as `configuration.effective` has it. Secrets are masked."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def source(self) -> str: ...
    @property
    def origin(self) -> str | None: ...


class ShownFinding(Protocol):
    """The result of a check, as `process.findings` has it."""

    @property
    def name(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def message(self) -> str: ...


def _nothing() -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """Functions that block: each is called in a thread."""

    settings: Callable[[], Sequence[ShownSetting]] = _nothing
    """The settings in use, and where each comes from."""
    judge: Callable[[], Sequence[ShownFinding]] = _nothing
    """What the settings alone show, such as plain text in public."""
    examine: Callable[[], Sequence[ShownFinding]] = _nothing
    """All checks of `gateway doctor`, with the settings of this worker. It takes seconds."""


NO_INSPECTION: Final = Inspection()
"""Of a gateway without configuration files."""
