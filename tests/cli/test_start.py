"""Commands start quickly: each imports only what it needs."""

from __future__ import annotations

import subprocess
import sys

from gateway.cli.main import cli, imported
from tests.rows import each_row

QUICK = ("audit", "backup", "completion", "keys", "ledger", "limits", "teams", "usage")
SLOW_PACKAGES = {"aiohttp", "PIL", "prometheus_client", "redis"}
"""What serves requests, makes images, measures, or is another store."""


def test_a_command_on_an_embedded_store_imports_nothing_that_it_does_not_need():
    modules = ", ".join(f"gateway.cli.{name}" for name in ("logs", "main", *QUICK))
    script = f"import sys, {modules}; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "gateway.wiring.stores" in found
    assert not SLOW_PACKAGES & set(found)


@each_row("name", cli.commands)
def test_a_command_is_listed_with_the_first_sentence_of_its_help(name: str):
    listed, command = cli.commands[name], imported(cli.commands[name])
    assert command is not listed
    assert command.name == name
    for limit in (45, 400):
        assert listed.get_short_help_str(limit) == command.get_short_help_str(limit)
