"""Prepares folders as another user: `python -m tests.process.prepared_folders CASES`, as root.

Each case of the JSON is prepared by a fork that becomes its user. For each, a line of JSON says
"prepared", or the error.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401 - the other user may not reach the interpreter's folder
import json
import os
import sys
from pathlib import Path
from typing import Any

from gateway.configuration.expand import ConfigError
from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.process.bootstrap import prepare
from gateway.process.unusable_folder import FolderUnusable
from gateway.store.handshake import SchemaMismatch


def become_and_prepare(case: dict[str, Any]) -> str:
    os.setgroups([])
    os.setgid(case["gid"])
    os.setuid(case["uid"])
    os.umask(case["umask"])
    store = {"data_dir": Path(case["folder"]), "blobs_url": case["blobs"]}
    try:
        prepare(Settings.model_validate({"store": store}))
    except (ConfigError, FolderUnusable, SchemaMismatch, StoreUnavailable) as error:
        return f"{type(error).__name__}: {error}"
    return "prepared"


def main() -> None:
    for case in json.loads(sys.argv[1]):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            sys.stdout = sys.stderr  # for the log
            os.write(write, become_and_prepare(case).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read) as answer:
            print(json.dumps(answer.read()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
