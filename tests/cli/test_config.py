"""`gateway config` and `gateway completion`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gateway.cli.completion import SHELLS
from gateway.cli.main import cli
from tests.cli.test_commands import interruptible
from tests.gateways import CONFIG

__all__ = ["interruptible"]


def run(folder: Path, *words: str, **environment: str) -> Result:
    """Runs one command in `folder`, without this machine's settings."""
    cleared = {n: None for n in os.environ if n.startswith(("GATEWAY_", "UPSTREAM_"))}
    here = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner(env={**cleared, **environment}).invoke(cli, words)
    finally:
        os.chdir(here)


def write(folder: Path, gateway: str = "", models: str = "") -> None:
    (folder / "config").mkdir()
    (folder / "config" / "gateway.yaml").write_text(gateway)
    if models:
        (folder / "config" / "models.yaml").write_text(models)


def test_the_shipped_files_have_no_fault(tmp_path: Path):
    result = run(tmp_path, "config", "check", UPSTREAM_API_KEY="sk-x")
    assert result.exit_code == 0
    assert result.stdout.startswith("ok: ")
    assert "fault" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_fault_of_both_files_is_a_line_with_file_key_and_the_nearest_one(tmp_path: Path):
    models = (CONFIG / "models.yaml").read_text().replace("default_model:", "defalt_model:", 1)
    gateway = (
        "workers: {cuont: 2}\nserver: {max_body: lots}\nupstream: {api_key: '${file:/none}'}\n"
    )
    write(tmp_path, gateway, models)
    result = run(tmp_path, "config", "check")
    lines = result.stdout.splitlines()
    file = tmp_path / "config" / "gateway.yaml"
    assert result.exit_code == 1
    assert lines[:3] == [
        (
            f"fault: {file}: upstream.api_key: the file /none cannot be read: No such file or "
            "directory."
        ),
        (
            f"fault: {file}: server.max_body: 'lots' is not valid; expected a size such as 512KiB, "
            "1MiB, 10GiB, or a number of bytes."
        ),
        f"fault: {file}: unknown key 'workers.cuont'. Did you mean 'workers.count'?",
    ]
    assert all("models.yaml: " in line for line in lines[3:])
    assert len(lines) > 3
    as_json = json.loads(run(tmp_path, "config", "check", "--format", "json").stdout)
    assert [f"{row['level']}: {row['finding']}" for row in as_json] == lines


@pytest.mark.parametrize(
    ("gateway", "status", "line"),
    [
        ("", 0, "warning: upstream.api_key is empty"),
        ("server: {listen: '0.0.0.0:80'}", 0, "set GATEWAY_PUBLIC_URL."),
        ("server: {trusted_proxies: 0.0.0.0/0}", 0, "0.0.0.0/0 contains clients too"),
        ("server: {tls: {cert: none, key: none}}", 1, "fault: server.tls: "),
        ("server: {tls: {cert: none}}", 1, "expected both cert and key, or neither"),
        ("server: [", 1, "not YAML"),
        ("a: 1\na: 2", 1, "the key 'a' is there twice"),
    ],
)
def test_what_serve_would_refuse_or_warn_of_is_said(
    tmp_path: Path, gateway: str, status: int, line: str
):
    write(tmp_path, gateway)
    result = run(tmp_path, "config", "check")
    assert result.exit_code == status, result.stdout
    assert line in result.stdout


def test_a_weak_token_in_the_data_folder_is_a_fault(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin-token").write_text("short\n")
    result = run(tmp_path, "config", "check", UPSTREAM_API_KEY="sk-x")
    assert result.exit_code == 1
    assert "fault: data/admin-token: the admin token is not valid" in result.stdout


def test_show_names_the_source_of_each_setting_and_masks_secrets(tmp_path: Path):
    (tmp_path / "key").write_text("sk-hunter2-hunter2\n")
    write(tmp_path, "upstream: {api_key: '${file:key}'}\nserver: {listen: '${ADDRESS}'}\n")
    result = run(tmp_path, "config", "show", "--format", "json", ADDRESS="127.0.0.1:81")
    rows = {row.pop("setting"): row for row in json.loads(result.stdout)}
    assert rows["upstream.api_key"] == {"value": "***", "source": "secret file", "from": "key"}
    assert rows["server.listen"] == {
        "value": "127.0.0.1:81",
        "source": "environment",
        "from": "ADDRESS",
    }
    assert rows["workers.count"] == {"value": 1, "source": "default", "from": None}
    assert str(tmp_path / "config" / "gateway.yaml") in result.stderr
    for output_format in ("table", "csv"):
        shown = run(tmp_path, "config", "show", "--format", output_format, ADDRESS="127.0.0.1:81")
        assert shown.exit_code == 0
        assert "127.0.0.1:81" in shown.stdout
        assert "hunter2" not in shown.output


def test_show_ends_with_the_faults_of_the_file(tmp_path: Path):
    write(tmp_path, "wrkers: 1\n")
    result = run(tmp_path, "config", "show")
    assert result.exit_code == 1
    assert "unknown key 'wrkers'" in result.stderr
    assert result.stdout == ""


# ── completion ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_is_valid_where_the_shell_is_installed(tmp_path: Path, shell: str):
    result = run(tmp_path, "completion", shell)
    assert result.exit_code == 0
    assert "_GATEWAY_COMPLETE" in result.stdout
    assert result.stderr == ""
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)


def test_an_unknown_shell_is_refused_with_the_known_ones(tmp_path: Path):
    result = run(tmp_path, "completion", "tcsh")
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.stderr


def test_bash_completes_commands_options_and_values(tmp_path: Path):
    script = run(tmp_path, "completion", "bash").stdout
    program = f"""
{script}
complete_words() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _gateway_completion "$1"; echo "${{COMPREPLY[*]}}"
}}
complete_words gateway conf
complete_words gateway keys set alice --par
"""
    installed = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "--norc", "-c", program],
        env={**os.environ, "PATH": f"{installed}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["config", "--parallel"]


# ── every command ───────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("is_async", [False, True])
def test_an_interrupted_command_ends_with_130(is_async: bool):
    async def wait() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    @click.command()
    def interrupted() -> None:
        asyncio.run(wait()) if is_async else signal.raise_signal(signal.SIGINT)

    group = type(cli)(commands={"part": click.Group(commands={"interrupted": interrupted})})
    result = CliRunner().invoke(group, ["part", "interrupted"])
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_log_on_a_terminal_is_coloured_unless_no_color_is_set():
    program = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    import structlog
    from gateway.cli.logs import configure_logs
    configure_logs("text")
    structlog.get_logger("here").info("an_event")
    os._exit(0)
sys.stdout.buffer.write(os.read(terminal, 1000))
"""
    shown = {}
    for no_color in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NO_COLOR": no_color, "TERM": "xterm"},
            capture_output=True,
            check=True,
        )
        shown[no_color] = done.stdout
    assert b"an_event" in shown[""]
    assert b"\x1b[" in shown[""]
    assert b"an_event" in shown["1"]
    assert b"\x1b[" not in shown["1"]
