"""The checksum of PNG chunks, with and without ISA-L."""

from __future__ import annotations

import importlib
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.imagefile import checksum


@pytest.fixture
def restored() -> Iterator[None]:
    """Loads the module again as it is installed, once a test has loaded it otherwise."""
    yield
    importlib.reload(checksum)


@pytest.mark.usefixtures("restored")
def test_isal_computes_the_checksums_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("isal"), ModuleType("isal.isal_zlib")

    def crc32(data: bytes) -> int:
        return zlib.crc32(data)

    vars(module)["crc32"] = crc32
    monkeypatch.setitem(sys.modules, "isal", package)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", module)
    importlib.reload(checksum)
    assert checksum.crc32 is crc32


@pytest.mark.usefixtures("restored")
def test_zlib_computes_them_everywhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    importlib.reload(checksum)
    assert checksum.crc32 is zlib.crc32


@given(st.binary(max_size=3000), st.integers(0, 9))
def test_the_installed_one_agrees_with_zlib(data: bytes, start: int) -> None:
    part = memoryview(data)[start:]
    assert checksum.crc32(part) == zlib.crc32(part)
