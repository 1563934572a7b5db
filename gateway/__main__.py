"""The entry of every command.

prometheus_client decides at import whether it counts over several processes, so the folder for
that is named before anything else is imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    _folder = tempfile.mkdtemp(prefix="gateway-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = _folder
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)

from gateway.cli.main import cli


def main() -> None:
    """Runs the command line."""
    cli(prog_name="gateway")


if __name__ == "__main__":
    main()
