"""The entry of every command.

It prepares the process before any other module of the gateway is imported: closed standard streams
are opened on /dev/null, new files are private, the garbage collector runs rarely, and the folder is
set in which prometheus_client collects the metrics of several workers.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile


def _open_standard_streams() -> None:
    """Opens /dev/null on closed descriptors 0 to 2, as they are in `gateway serve 2>&-`."""
    # Otherwise the next file or socket would get the number, and printed text would go into it.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        # Python sets a stream to None if its descriptor is closed at the start.
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))


_open_standard_streams()
# Files that a library creates, such as SQLite's temporary ones, are private too.
os.umask(0o077)
# Imports leave no garbage, and looking for it took a fifth of the start. Workers set thresholds of
# their own (`tuning`).
gc.set_threshold(50_000)
# prometheus_client reads this variable when it is imported. A folder that it names already may have
# files of another program, of another gateway, or of one that was killed: they would be counted.
try:
    _folder = tempfile.mkdtemp(
        prefix="gateway-metrics-", dir=os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    )
except OSError as _error:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        sys.exit(
            f"Error: PROMETHEUS_MULTIPROC_DIR={os.environ['PROMETHEUS_MULTIPROC_DIR']}: "
            f"{_error.strerror}. Unset it, or name a folder that can be written."
        )
    # As in a container with a read-only root and nothing mounted at /tmp.
    sys.exit(
        f"Error: there is no folder for temporary files: {_error.strerror}. Mount a tmpfs "
        "where TMPDIR or the system expects one, or set TMPDIR to a folder that can be written."
    )
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _folder
# Only the parent removes it: workers leave with `os._exit`, which skips exit handlers.
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

from gateway.cli.logs import configure_logs  # noqa: E402
from gateway.cli.main import cli  # noqa: E402 - only now: it imports everything
from gateway.cli.streams import open_streams  # noqa: E402


def main() -> None:
    """Runs the command line."""
    # Logs have the default format until `serve` has read its settings. They go to standard error,
    # because standard output has the data of a command.
    open_streams()
    configure_logs(None)
    cli(prog_name="gateway")


if __name__ == "__main__":
    main()
