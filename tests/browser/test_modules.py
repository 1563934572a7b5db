"""Modules that need no page: of the playground, of Spend, and of the other views of an admin."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.api.dashboard.page import STATIC

HERE = Path(__file__).parent


@pytest.mark.parametrize("script", ["modules.mjs", "reports.mjs", "admin_modules.mjs"])
def test_the_modules_read_and_write_what_the_gateway_speaks(script: str, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed: apt-get install nodejs")
    shutil.copytree(STATIC / "lib", tmp_path / "lib")
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")

    done = subprocess.run(
        ["node", str(HERE / script), str(tmp_path)], capture_output=True, check=False, text=True
    )

    assert done.returncode == 0, done.stderr
