"""Files and folders that only the gateway's own user may read: 0600 and 0700.

Neither the umask nor the modes of an older installation change that. Symbolic links are left alone,
because they may lead to files of others.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
OTHERS: Final = 0o077
"""The rights of group and others. Removing only these keeps the owner's."""


def create_private_folder(folder: Path) -> None:
    """Creates the folder and its missing parents, all 0700. Leaves existing ones as they are."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for level in reversed(missing):
        create_private_level(level)


def create_private_level(folder: Path) -> None:
    """Creates the folder (0700) in an existing one, if it is missing."""
    try:
        folder.mkdir(PRIVATE_FOLDER)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    # A umask may have taken rights from the owner too.
    folder.chmod(PRIVATE_FOLDER)


def make_private(path: Path) -> bool:
    """Removes the rights of group and others. Returns whether there were any.

    Raises `OSError` if the file belongs to another user.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) or not mode & OTHERS:
        return False
    path.chmod(stat.S_IMODE(mode) & ~OTHERS)
    return True


def find_shared(
    folder: Path,
    *,
    is_own: Callable[[os.DirEntry[str]], bool] = lambda entry: True,
    is_large: Callable[[os.DirEntry[str]], bool] = lambda entry: False,
) -> Iterator[Path]:
    """Files and folders below the folder that group or others have rights on, folders first.

    Only entries for which `is_own` is true, and what is below them. Folders for which `is_large` is
    true are listed only if they are shared, because others cannot reach into a private one. Entries
    that disappear meanwhile, such as temporary files, are left out, and so are folders of other
    users that the gateway cannot list, such as `lost+found`.
    """
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, PermissionError):
        return
    with entries:
        for entry in entries:
            if entry.is_symlink() or not is_own(entry):
                continue
            try:
                is_shared = bool(entry.stat(follow_symlinks=False).st_mode & OTHERS)
            except FileNotFoundError:
                continue
            if is_shared:
                yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False) and (is_shared or not is_large(entry)):
                yield from find_shared(Path(entry.path), is_large=is_large)
