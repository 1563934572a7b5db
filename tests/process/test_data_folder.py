"""The data folder, for a user that is not its owner: it works, or one line says how.

One process of root prepares all folders of a test, in forks that become the other user.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.forks import ROOT, run_fork
from tests.other_users import RANDOM, User, needs_root, run_as

OWNER = 10_001
PREPARE = "tests.process.prepared_folders"


def prepare_as(
    user: User, *folders: Path, umask: int = 0o022, blobs: Sequence[Path] = ()
) -> list[str]:
    """What each start does in its folder: "prepared", or the error."""
    common = {"uid": user.uid, "gid": user.gid, "umask": umask}
    urls = [f"file://{folder}" for folder in blobs]
    cases = [
        {**common, "folder": str(folder), "blobs": url}
        for folder, url in zip_longest(folders, urls)
    ]
    done = run_fork(json.dumps(cases), cwd=ROOT, env=os.environ, module=PREPARE)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that every user can reach, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="gateway-folders-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def make(folder: Path, *, owner: int, group: int, mode: int) -> Path:
    folder.mkdir()
    os.chown(folder, owner, group)
    folder.chmod(mode)
    return folder


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@needs_root
@pytest.mark.parametrize("umask", [0o000, 0o177])
def test_a_random_user_works_in_a_folder_of_its_group_and_keeps_its_files_private(
    root: Path, umask: int
) -> None:
    folders = [
        make(root / "image", owner=OWNER, group=0, mode=0o770),
        make(root / "kubernetes", owner=0, group=0, mode=0o2775),
        make(root / "own", owner=RANDOM.uid, group=0, mode=0o755),
    ]
    below = make(root / "mount", owner=0, group=0, mode=0o777) / "gateway"
    assert prepare_as(RANDOM, *folders, below, umask=umask) == ["prepared"] * 4
    for folder in (*folders, below):
        assert modes(folder) == {0o600}
        assert (folder / "gateway.sqlite").stat().st_uid == RANDOM.uid
    assert [stat.S_IMODE(f.stat().st_mode) for f in folders] == [0o770, 0o2775, 0o700]
    assert stat.S_IMODE(below.stat().st_mode) == 0o700
    # Also the second time.
    assert prepare_as(RANDOM, *folders, below, umask=umask) == ["prepared"] * 4


@needs_root
def test_an_unusable_folder_is_refused_in_a_line_that_names_the_variable(root: Path) -> None:
    with_token = make(root / "token", owner=OWNER, group=0, mode=0o770)
    (with_token / "admin-token").write_text("a-token-that-a-member-of-the-group-knows")
    os.chown(with_token / "admin-token", OWNER, 0)
    (with_token / "admin-token").chmod(0o644)
    foreign = make(root / "files", owner=RANDOM.uid, group=0, mode=0o700)
    (foreign / "gateway.sqlite").touch()
    (foreign / "gateway.sqlite").chmod(0o600)
    folders = {
        "Permission denied": make(root / "root", owner=0, group=0, mode=0o755) / "data",
        "another user (uid 10001, gid 0, mode 0700)": make(
            root / "private", owner=OWNER, group=0, mode=0o700
        ),
        "another user (uid 0, gid 10001, mode 2770)": make(
            root / "group", owner=0, group=10_001, mode=0o2770
        ),
        "every user can write to it": make(root / "open", owner=0, group=0, mode=0o1777),
        "admin-token belongs to another user": with_token,
        "gateway.sqlite: Permission denied": foreign,
        "Permission denied.": make(root / "deep", owner=0, group=10_001, mode=0o750) / "a" / "b",
    }
    messages = prepare_as(RANDOM, *folders.values())
    for (problem, folder), message in zip(folders.items(), messages, strict=True):
        assert problem in message
        assert str(folder) in message
        assert "Set GATEWAY_DATA_DIR to a folder" in message
        assert "(uid 1000670000, gid 0)" in message
        assert "\n" not in message
    assert str(folders["every user can write to it"] / "gateway") in messages[3]


@needs_root
def test_an_unusable_folder_of_images_is_refused_in_a_line_too(root: Path) -> None:
    own = make(root / "own", owner=RANDOM.uid, group=0, mode=0o700)
    closed = make(root / "closed", owner=0, group=10_001, mode=0o755)
    blobs = [closed, closed / "below", own / "a" / "b"]
    *refused, prepared = prepare_as(RANDOM, own, own, own, blobs=blobs)
    for folder, message in zip(blobs, refused, strict=False):
        assert message.startswith(f"FolderUnusable: The folder {folder} cannot be used: {closed}")
        assert "Set GATEWAY_BLOBS_URL to file:// and a folder that this user" in message
    assert prepared == "prepared"


@needs_root
def test_commands_on_the_store_of_another_user_end_with_one_line(root: Path) -> None:
    folder = make(root / "of-root", owner=0, group=0, mode=0o700)
    result = run_as(RANDOM, root, "keys", "list", GATEWAY_DATA_DIR=str(folder))
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: The store at {folder}/gateway.sqlite cannot be used")
    assert "GATEWAY_DATA_DIR" in result.stderr
    assert result.stderr.count("\n") == 1
    examined = run_as(RANDOM, root, "doctor", "--format", "json", GATEWAY_DATA_DIR=str(folder))
    assert examined.returncode == 1
    assert "Permission denied" in examined.stdout
    assert "Traceback" not in examined.stderr


@needs_root
def test_serve_as_a_random_user_ends_with_one_line(root: Path) -> None:
    environment = {"UPSTREAM_API_KEY": "sk-x", "GATEWAY_LISTEN": "127.0.0.1:0"}
    result = run_as(RANDOM, root, "serve", **environment)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "Error: The folder data cannot be used: data: Permission denied"
    )
    assert "GATEWAY_DATA_DIR" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_machine_without_a_folder_for_temporary_files_is_told_so_in_one_line() -> None:
    program = "import tempfile; tempfile.tempdir = '/proc/none'; import gateway.__main__"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"]},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: there is no folder for temporary files: ")
    assert "TMPDIR" in result.stderr
    assert result.stderr.count("\n") == 1
