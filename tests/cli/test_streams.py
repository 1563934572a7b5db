"""Standard output on a full disk, without a reader, or opened for reading; and standard error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from gateway.store.sqlite.connection import create_sqlite_schema
from tests.empty_store import place_empty_store
from tests.forks import Fork
from tests.ports import free_port
from tests.waiting import GENEROUS_SECONDS, until

NO_SPACE = "the output cannot be written: No space left on device."

COMMANDS = [
    *("--help", "--version", "config --help", "config check", "config show", "completion bash"),
    *("config show --format json", "usage", "usage --format json", "keys list"),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    given = {"GATEWAY_DATA_DIR": str(tmp_path / "data"), "UPSTREAM_API_KEY": "sk-upstream"}
    environment = os.environ | given | {"GATEWAY_LISTEN": f"127.0.0.1:{free_port()}"}
    place_empty_store(tmp_path / "data" / "gateway.sqlite")
    create_sqlite_schema(tmp_path / "data" / "gateway.sqlite")
    return environment


def run(
    words: str, environment: dict[str, str], folder: Path, *, stdout: IO[bytes] | None = None
) -> tuple[int, list[str]]:
    """The exit status, and the errors on standard error, where other lines say what was read."""
    log = folder / "log"
    with log.open("wb") as stderr, Path(os.devnull).open("wb") as unseen:
        output = stdout or unseen
        fork = Fork(*words.split(), cwd=folder, env=environment, stdout=output, stderr=stderr)
        status = fork.wait(GENEROUS_SECONDS)
    lines = log.read_text().splitlines()
    return status, [line for line in lines if line.startswith(("Error", "Traceback", "Exception"))]


@contextmanager
def full() -> Iterator[IO[bytes]]:
    with Path("/dev/full").open("wb") as disk:
        yield disk


@contextmanager
def unread() -> Iterator[IO[bytes]]:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        yield pipe


@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk_ends_a_command_with_one_line(
    words: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with full() as disk:
        status, lines = run(words, environment, tmp_path, stdout=disk)
    assert (status, lines) == (1, [f"Error: {NO_SPACE}"])


@pytest.mark.parametrize("words", ["--help", "config show", "usage --format json", "keys list"])
def test_a_pipe_without_a_reader_ends_a_command_without_a_line(
    words: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with unread() as pipe:
        status, lines = run(words, environment, tmp_path, stdout=pipe)
    assert (status, lines) == (1, [])


def test_an_output_that_is_open_for_reading_ends_a_command_with_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with Path("/dev/null").open("rb") as null:
        status, lines = run("keys list", environment, tmp_path, stdout=null)
    assert (status, lines) == (1, ["Error: the output cannot be written: Bad file descriptor."])


def test_a_full_pipe_that_does_not_block_is_waited_for(
    environment: dict[str, str], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    taken = os.write(writer, bytes(1 << 20))
    words = "config", "show", "--format", "json"
    with os.fdopen(reader, "rb") as pipe, (tmp_path / "log").open("wb") as stderr:
        with os.fdopen(writer, "wb") as output:
            fork = Fork(*words, cwd=tmp_path, env=environment, stdout=output, stderr=stderr)
        assert pipe.read(taken) == bytes(taken)
        assert json.loads(pipe.read())
    assert fork.wait(GENEROUS_SECONDS) == 0


def test_a_standard_error_that_is_full_changes_no_exit_status(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with full() as disk, Path(os.devnull).open("wb") as unseen:
        for words, output, status in (
            ("keys list", unseen, 0),
            ("config show", unseen, 0),
            ("config nope", unseen, 2),
            ("config show", disk, 1),
        ):
            fork = Fork(*words.split(), cwd=tmp_path, env=environment, stdout=output, stderr=disk)
            assert fork.wait(GENEROUS_SECONDS) == status, words


@pytest.mark.parametrize("words", ["serve", "simulate"])
@pytest.mark.parametrize("output", [full, unread])
def test_a_server_serves_although_its_address_cannot_be_written(
    words: str, output: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    listen = environment["GATEWAY_LISTEN"]
    more = ("--listen", listen) if words == "simulate" else ()
    path = "/_sim/calls" if words == "simulate" else "/healthz"
    with output() as stdout, (tmp_path / "log").open("wb") as stderr:
        fork = Fork(words, *more, cwd=tmp_path, env=environment, stdout=stdout, stderr=stderr)
        try:
            curl = ["curl", "--silent", "--fail", "--output", "/dev/null", f"http://{listen}{path}"]
            until(lambda: subprocess.run(curl, check=False).returncode == 0)
        finally:
            fork.send_signal(signal.SIGTERM)
            status = fork.wait(GENEROUS_SECONDS)
    assert status == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("words", ["keys add bob", "keys rotate alice --format json"])
def test_a_secret_that_is_lost_is_said_with_the_key(
    words: str, environment: dict[str, str], tmp_path: Path
) -> None:
    assert run("keys add alice", environment, tmp_path) == (0, [])
    with full() as disk:
        status, (line,) = run(words, environment, tmp_path, stdout=disk)
    name = "bob" if "bob" in words else "alice"
    assert status == 1
    assert line.startswith(f"Error: The new secret of key '{name}' is lost, because {NO_SPACE}")
    rotate = line.partition("`gateway ")[2].partition("`")[0]
    assert run(rotate, environment, tmp_path)[0] == 0
