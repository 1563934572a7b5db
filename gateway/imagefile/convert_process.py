"""Transcodes an image in a process of its own.

In a thread, the codec would share the interpreter's lock with the event loop, the pixels would stay
in the worker's memory, and a codec that crashes on an image would end the worker. The process knows
no secret: its environment has only the variables that Python needs to start. It reads a PNG from
its standard input and writes the result to its standard output.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress
from typing import IO, Final, cast

from gateway.imagefile.convert import TranscodedFormat, transcode_image
from gateway.imagefile.process_environment import conversion_environment

MAX_PROCESSOR_SECONDS: Final = 60
"""Of one image. One of 33 megapixels takes up to 10 seconds."""
_NICENESS: Final = 10
"""Lower priority than the workers, which answer clients."""


class ConversionFailed(Exception):
    """The process did not start, the codec crashed, or the system stopped it."""


def transcode_in_process(
    data: bytes, *, format: TranscodedFormat, compression: int
) -> bytes | None:
    """As `transcode_image`, which says what is returned. Blocks until the process has ended, so
    call it in a thread.

    Raises `ConversionFailed`.
    """
    try:
        process = _start(format, compression)
    except OSError as exc:
        raise ConversionFailed(f"no process for transcoding: {exc}") from exc
    with process:
        source, result = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        # One after the other: the process writes nothing before it has read everything.
        with suppress(BrokenPipeError), source:  # its status will say why
            source.write(data)
        transcoded = result.read()
    if process.returncode != 0:
        raise ConversionFailed(f"the process for transcoding ended with {process.returncode}")
    return transcoded or None


def _start(format: str, compression: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - no part of the command is from a request
        # -P: not from the current folder, which may have another package of this name.
        [sys.executable, "-P", "-m", __name__, format, str(compression)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=conversion_environment(),
        # A signal to the gateway's process group is for the supervisor, which lets workers finish.
        start_new_session=True,
    )


def main(format: str, compression: str) -> None:
    """The process: writes the transcoded image, or nothing if it would not look the same."""
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_PROCESSOR_SECONDS, MAX_PROCESSOR_SECONDS))
    transcoded = transcode_image(
        sys.stdin.buffer.read(),
        format=cast(TranscodedFormat, format),
        compression=int(compression),
    )
    sys.stdout.buffer.write(transcoded or b"")


if __name__ == "__main__":
    main(*sys.argv[1:])
