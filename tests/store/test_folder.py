"""Tests of blobs in a folder only: their files, expiry times, and the sweep."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.blobs.folder import ABANDONED_SECONDS, FolderBlobs

BYTES = b"\x89PNG otter"
DIGEST = hashlib.sha256(BYTES).hexdigest()
NOW = 1_800_000_000.0


def files(root: Path) -> set[str]:
    return {path.name for path in root.glob("??/*")}


async def test_a_file_is_stored_under_the_first_two_letters_of_its_digest(tmp_path: Path) -> None:
    await FolderBlobs(tmp_path).put(DIGEST, BYTES, 60)
    path = tmp_path / DIGEST[:2] / DIGEST
    assert path.read_bytes() == BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_mtime == pytest.approx(time.time() + 60, abs=30)


async def test_expired_bytes_are_none_before_they_are_swept(tmp_path: Path) -> None:
    await FolderBlobs(tmp_path, lambda: NOW).put(DIGEST, BYTES, 60)
    assert await FolderBlobs(tmp_path, lambda: NOW + 59).get(DIGEST) == BYTES
    assert await FolderBlobs(tmp_path, lambda: NOW + 60).get(DIGEST) is None
    assert files(tmp_path) == {DIGEST}


async def test_putting_again_extends_and_never_shortens(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, lambda: NOW)
    for ttl_seconds in (60, 120, 10):
        await blobs.put(DIGEST, BYTES, ttl_seconds)
    assert await FolderBlobs(tmp_path, lambda: NOW + 119).get(DIGEST) == BYTES
    assert await FolderBlobs(tmp_path, lambda: NOW + 120).get(DIGEST) is None


async def test_expired_bytes_are_written_again(tmp_path: Path) -> None:
    await FolderBlobs(tmp_path, lambda: NOW).put(DIGEST, BYTES, 10)
    later = FolderBlobs(tmp_path, lambda: NOW + 100)
    await later.put(DIGEST, BYTES, 10)
    assert await later.get(DIGEST) == BYTES


async def test_a_sweep_removes_expired_files_up_to_its_limit(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, lambda: NOW)
    for i in range(5):
        await blobs.put(f"{i:064x}", BYTES, 10)
    await blobs.put(DIGEST, BYTES, 100)
    later = FolderBlobs(tmp_path, lambda: NOW + 50)
    assert [await later.sweep(3), await later.sweep(3), await later.sweep(3)] == [3, 2, 0]
    assert files(tmp_path) == {DIGEST}


async def test_a_sweep_of_a_missing_folder_finds_nothing(tmp_path: Path) -> None:
    assert await FolderBlobs(tmp_path / "absent").sweep(10) == 0


async def test_a_sweep_removes_only_old_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    for name, age in (("tmp-old", ABANDONED_SECONDS + 1), ("tmp-new", 1)):
        (tmp_path / "ab" / name).write_bytes(b"half")
        os.utime(tmp_path / "ab" / name, (NOW - age, NOW - age))
    assert await FolderBlobs(tmp_path, lambda: NOW).sweep(10) == 1
    assert files(tmp_path) == {"tmp-new"}


async def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    await asyncio.gather(*(blobs.put(DIGEST, BYTES, 60) for _ in range(20)))
    assert files(tmp_path) == {DIGEST}
    assert await blobs.get(DIGEST) == BYTES


async def test_a_failing_disk_makes_the_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    blobs = FolderBlobs(tmp_path / "file")
    with pytest.raises(StoreUnavailable):
        await blobs.put(DIGEST, BYTES, 60)
    with pytest.raises(StoreUnavailable):
        await blobs.get(DIGEST)


async def test_a_data_folder_that_disappears_during_a_write_is_never_created_again(
    tmp_path: Path,
) -> None:
    """Simulates a volume that is unmounted between two steps of a write."""
    data_dir, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data_dir.mkdir()
    blobs = FolderBlobs(data_dir / "blobs", data_dir=data_dir)

    async def store(first: int) -> None:
        for number in range(first, first + 300):
            with suppress(StoreUnavailable):
                await blobs.put(hashlib.sha256(b"%d" % number).hexdigest(), BYTES, 60)

    storing = asyncio.gather(*(store(1000 * task) for task in range(4)))
    while not storing.done():
        data_dir.rename(elsewhere)
        await asyncio.sleep(0.001)
        elsewhere.rename(data_dir)  # fails if a new data folder has been created
        await asyncio.sleep(0)
    await storing


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreUnavailable)],
)
async def test_a_full_disk_raises_store_full_and_can_be_emptied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    expected: type[StoreUnavailable],
) -> None:
    blobs = FolderBlobs(tmp_path)
    await blobs.put(DIGEST, BYTES, 60)

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailable) as caught:
        await blobs.put("f" * 64, BYTES, 60)
    assert type(caught.value) is expected
    assert files(tmp_path) == {DIGEST}
    await blobs.delete(DIGEST)
    assert files(tmp_path) == set()


async def test_a_scan_is_in_order_and_without_temporary_files(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    names = sorted(hashlib.sha256(b"%d" % i).hexdigest() for i in range(20))
    for name in names:
        await blobs.put(name, BYTES, 60)
    (tmp_path / names[0][:2] / "tmp-half").write_bytes(b"half")
    after, page = await blobs.scan("", 7)
    assert (after, list(page)) == (names[6], names[:7])
    after, page = await blobs.scan(names[6], 7)
    assert (after, page) == (names[13], dict.fromkeys(names[7:14], len(BYTES)))


async def test_a_scan_of_a_missing_folder_finds_nothing(tmp_path: Path) -> None:
    assert await FolderBlobs(tmp_path / "absent").scan("", 10) == (None, {})


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "AB" * 32, "a" * 63, "a" * 64 + "\n"])
async def test_a_name_that_is_no_digest_raises_value_error(tmp_path: Path, name: str) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    with pytest.raises(ValueError, match="SHA-256"):
        await blobs.get(name)
    with pytest.raises(ValueError, match="SHA-256"):
        await blobs.put(name, b"", 1)
    with pytest.raises(ValueError, match="SHA-256"):
        await blobs.delete(name)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_many_sweeps_together_look_at_each_file_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    is_expired = FolderBlobs._is_expired

    def count(self: FolderBlobs, path: Path) -> bool:
        nonlocal looks
        looks += 1
        return is_expired(self, path)

    blobs = FolderBlobs(tmp_path, lambda: NOW)
    for i in range(100):
        expires_in = 10 if i % 2 else 100
        await blobs.put(hashlib.sha256(bytes([i])).hexdigest(), BYTES, expires_in)
    monkeypatch.setattr(FolderBlobs, "_is_expired", count)
    later = FolderBlobs(tmp_path, lambda: NOW + 50)
    sweeps = 0
    while await later.sweep(5) == 5:
        sweeps += 1

    assert sweeps == 10
    assert len(files(tmp_path)) == 50
    # Each removed file twice: without the lock and with it. Of one folder some again in each sweep.
    assert looks <= 50 + 2 * 50 + 10 * 5
