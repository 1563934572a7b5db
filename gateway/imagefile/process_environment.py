"""The environment of the processes that read images."""

from __future__ import annotations

import os
import sys
from typing import Final

_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""The environment variables without which some installations of Python do not start."""


def conversion_environment() -> dict[str, str]:
    """The environment of a process that decodes images: no secret of the gateway."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, "PYTHONPATH": os.pathsep.join(sys.path)}
