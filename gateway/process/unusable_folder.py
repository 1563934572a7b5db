"""Why a start ends with a folder that the gateway cannot use."""

from __future__ import annotations

import os
from pathlib import Path


class FolderUnusable(Exception):
    """The data folder, or that of the images, cannot be used. The message has one line."""

    def __init__(
        self,
        folder: Path,
        problem: str,
        *,
        better: str = "a folder",
        variable: str = "GATEWAY_DATA_DIR",
    ) -> None:
        super().__init__(
            f"The folder {folder} cannot be used: {problem} Set {variable} to {better} that this "
            f"user (uid {os.geteuid()}, gid {os.getegid()}) can write."
        )
