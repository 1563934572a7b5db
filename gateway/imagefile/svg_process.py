"""Checks a large SVG in a process of its own.

In a thread, one call of the parser or of a regular expression on megabytes, such as an embedded
photograph or a long comment, would hold the interpreter's lock for a tenth of a second and more,
and no client would be answered meanwhile. The process knows no secret, as that of
`convert_process`. It reads the file from its standard input and writes the facts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from typing import Final

from gateway.imagefile.facts import BadImage, ImageFacts
from gateway.imagefile.process_environment import conversion_environment
from gateway.imagefile.svg import MAX_BYTES, check_svg

MIN_BYTES: Final = 256 << 10
"""A smaller file is checked where it is: it takes less time than Python takes to start."""
MAX_PROCESSOR_SECONDS: Final = 20
"""Of one file. One that uses all bounds takes up to 2 seconds."""
_NICENESS: Final = 5


def check_svg_apart(data: bytes) -> ImageFacts:
    """As `check_svg`; a large file is checked in a process. Blocks, so call it in a thread."""
    if not MIN_BYTES <= len(data) <= MAX_BYTES:
        return check_svg(data)
    try:
        ended = subprocess.run(  # noqa: S603 - no part of the command is from a request
            # -P: not from the current folder, which may have another package of this name.
            [sys.executable, "-P", "-m", __name__],
            input=data,
            stdout=subprocess.PIPE,
            env=conversion_environment(),
            # A signal to the gateway's process group is for the supervisor.
            start_new_session=True,
            check=False,
        )
    except OSError:
        return check_svg(data)  # no process: what was paid for is not lost
    if ended.returncode != 0:
        raise BadImage(f"SVG whose check ended with {ended.returncode}")
    found = json.loads(ended.stdout)
    if "fault" in found:
        raise BadImage(found["fault"])
    return ImageFacts(**{**found, "active": tuple(found["active"])})


def main() -> None:
    """The process: the facts of the file, or its fault, as JSON."""
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_PROCESSOR_SECONDS, MAX_PROCESSOR_SECONDS))
    try:
        found = dataclasses.asdict(check_svg(sys.stdin.buffer.read()))
    except BadImage as bad:
        found = {"fault": str(bad)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
