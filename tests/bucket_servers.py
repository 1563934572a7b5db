"""Object storage for tests: servers of S3 that run here.

nanio checks signatures and has few dependencies: it is what continuous integration runs. Others
are installed by the tests that need them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from tests.ports import free_port
from tests.waiting import GENEROUS_SECONDS

ACCESS_KEY = "AKIAGATEWAYTEST"
SECRET_KEY = "a-secret-of-the-tests"
REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@dataclass
class BucketServer:
    """A server of S3, which a test can stop and start again. Its buckets are folders."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, bucket: str, prefix: str = "a/prefix") -> str:
        """The URL of a bucket, for `GATEWAY_BLOBS_URL`. The bucket exists from now on."""
        (self.folder / bucket).mkdir(exist_ok=True)
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region={REGION}"

    def start(self) -> None:
        """Starts the server on the same port, with what its folder has."""
        # nanio never stores an object of which a killed server has left the temporary file.
        for left in self.folder.rglob("*.tmp"):
            left.unlink()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(self.folder)),
                *("--host", "127.0.0.1", "--port", str(self.port), "--region", REGION),
                *("--log-level", "error", "--no-access-log"),
            ],
            env={**os.environ, "NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
        )
        wait_for_answer(self.endpoint)

    def stop(self) -> None:
        """Kills the server, as a crash does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def wait_for_answer(url: str) -> None:
    """Waits until a server answers anything."""
    ends_at = time.monotonic() + GENEROUS_SECONDS
    while time.monotonic() < ends_at:
        try:
            urlopen(url, timeout=1).close()
        except HTTPError:
            return
        except (URLError, OSError):
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"no server answers at {url}")


@contextmanager
def run_bucket_server(folder: Path) -> Iterator[BucketServer]:
    """A server of S3 without buckets, which checks signatures."""
    server = BucketServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
