"""Reads the files that `${file:/path}` names, such as the secrets of Docker and Kubernetes."""

from __future__ import annotations

import os
import stat
from typing import Final

MAX_BYTES: Final = 64 << 10
"""The largest file. A secret is shorter by far."""


class UnreadableFile(Exception):
    """The file cannot be a value. The message says why and names neither file nor content."""


def read_secret_file(path: str) -> str:
    """The text of a regular file, without one newline at its end. Raises `UnreadableFile`."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from None
    except ValueError:  # a path with a NUL or half a surrogate pair
        raise UnreadableFile("cannot be read: No such file or directory") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableFile("is a folder; expected a file")
        if not stat.S_ISREG(mode):
            raise UnreadableFile("is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            # One byte more than allowed, because files of /proc do not tell their size.
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return _as_text(data)


def _as_text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise UnreadableFile(f"has more than {MAX_BYTES >> 10} KiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableFile("is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    # An empty setting has its default: the gateway would start without the secret.
    if not text:
        raise UnreadableFile("is empty")
    return text
