"""Chromium for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.running import Scripts, find_scripts


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """Runs scripts in Chromium, which may leave files in the test's folder."""
    return find_scripts(tmp_path)
