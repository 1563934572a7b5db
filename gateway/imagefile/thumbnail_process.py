"""Makes thumbnails in a process of its own, for the reasons that `convert_process` has.

A page shows dozens of thumbnails, and Python takes longer to start than an image to be made
smaller. So a process makes several, one after the other, and ends when it is idle. One that crashes
on an image, or takes too long, takes only that image with it.
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final, cast

from gateway.imagefile.convert_process import ConversionFailed
from gateway.imagefile.process_environment import conversion_environment
from gateway.imagefile.thumbnail import make_thumbnail

MAX_SECONDS: Final = 20.0
"""Of one image. One of 33 megapixels takes up to 3 seconds."""
MAX_MADE: Final = 200
"""Thumbnails of one process, whose memory the system then has back."""
MAX_MEMORY_BYTES: Final = 1 << 30
"""The address space of a process. The pixels of an image take up to 300 MB."""
_NICENESS: Final = 10
_LENGTH: Final = struct.Struct(">Q")


class ThumbnailProcess:
    """A process that makes thumbnails. Only one thread may use it at a time."""

    def __init__(self, *, max_pixels: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_pixels = max_pixels
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._used_at = 0.0

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def idle_seconds(self) -> float:
        """How long it has made none; 0 if there is no process."""
        return 0.0 if self._process is None else self._clock() - self._used_at

    def make(self, data: bytes) -> bytes | None:
        """As `make_thumbnail`. Blocks until it is made, so call it in a thread.

        Raises `ConversionFailed` if the process did not start, crashed, or took too long.
        """
        try:
            process = self._started()
        except OSError as exc:
            raise ConversionFailed(f"no process for thumbnails: {exc}") from exc
        deadline = threading.Timer(MAX_SECONDS, process.kill)
        deadline.start()
        try:
            thumbnail = _exchange(process, data)
        except (OSError, EOFError):
            self.close()
            raise ConversionFailed(
                f"the process for thumbnails ended with {process.returncode}"
            ) from None
        finally:
            deadline.cancel()
        self._used_at = self._clock()
        self._made += 1
        if self._made >= MAX_MADE:
            self.close()
        return thumbnail or None

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with suppress(BrokenPipeError), process:
            process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._made = 0
            self._process = subprocess.Popen(  # noqa: S603 - no part is from a request
                # -P: not from the current folder, which may have another package of this name.
                [sys.executable, "-P", "-m", __name__, str(self._max_pixels)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=conversion_environment(),
                # A signal to the gateway's process group is for the supervisor.
                start_new_session=True,
            )
        return self._process


def _exchange(process: subprocess.Popen[bytes], data: bytes) -> bytes:
    """Sends an image and receives its thumbnail. Raises `OSError` or `EOFError`."""
    source, result = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    source.write(_LENGTH.pack(len(data)))
    source.write(data)
    source.flush()
    return _read(result)


def _read(file: IO[bytes]) -> bytes:
    """Bytes after their length. Raises `EOFError` at the end of the file."""
    length = file.read(_LENGTH.size)
    data = file.read(*_LENGTH.unpack(length)) if len(length) == _LENGTH.size else b""
    if len(length) < _LENGTH.size or len(data) < _LENGTH.unpack(length)[0]:
        raise EOFError
    return data


def main(max_pixels: str) -> None:
    """The process: a thumbnail, or no byte, for each image until its input ends."""
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(_NICENESS)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    warnings.simplefilter("ignore")  # of large images, which `make_thumbnail` refuses
    source, result = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError):
        while True:
            thumbnail = make_thumbnail(_read(source), max_pixels=int(max_pixels)) or b""
            result.write(_LENGTH.pack(len(thumbnail)) + thumbnail)
            result.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
