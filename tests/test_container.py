"""The container image: the Dockerfile, and its build step, run without a container.

The step is a script. It runs here as in a build: with only the files that the Dockerfile copies,
which are read-only, and with an empty environment. Unlike a build it runs as an unprivileged user.
The result is then started as the image starts it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.configuration.fields import Address, parse_address
from tests.dockerfile import read_stages
from tests.gateways import TLS_SETTINGS, run_processes, run_upstream
from tests.other_users import RANDOM, User
from tests.pip_settings import pip_environment
from tests.waiting import GENEROUS_SECONDS, until

ROOT = Path(__file__).parent.parent
BUILD, FINAL = read_stages(ROOT / "Dockerfile")
SOURCE, PREFIX = "/source", "/opt/gateway"
"""Paths in the image."""

BUILDERS = ["pip", "setuptools", "wheel", "hatchling", "ensurepip"]
UNCHECKED_HASH = b"\x01\x00\x00\x00"
"""The flags of bytecode that Python uses without checking its source (PEP 552)."""

DATA_RIGHTS = ["-d", "-o", "10001", "-g", "0", "-m", "0770"]
"""With which `install` makes the data folder."""

NOBODY = 65534


# ── the Dockerfile ────────────────────────────────────────────────────────────────


def test_both_stages_have_one_base_that_names_python_and_system():
    """With a digest: a tag may lead to another image tomorrow."""
    assert BUILD.name == "build"
    assert BUILD.base == FINAL.base
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", FINAL.base)


def test_a_build_runs_only_the_script():
    assert BUILD.one("RUN") == f"deploy/install.sh {SOURCE} {PREFIX}"
    strip, folder = FINAL.one("RUN").split("&&")
    mount, *words = strip.split()
    assert mount == "--mount=type=bind,from=build,source=/source/deploy,target=/mnt"
    assert words == ["/mnt/install.sh", "--strip", "/usr/local"]
    assert folder.split() == ["install", *DATA_RIGHTS, FINAL.one("VOLUME")]


def test_the_final_stage_copies_the_installation_and_makes_a_data_folder():
    """Of the user, and of group 0, of which OpenShift's random users are members."""
    assert FINAL.all("COPY") == [f"--from=build {PREFIX} {PREFIX}"]
    assert FINAL.one("USER").startswith(f"{DATA_RIGHTS[2]}:")
    words = [word for word, _ in FINAL.lines]
    assert words.index("VOLUME") > words.index("RUN")  # Docker drops later changes
    assert words.index("USER") > words.index("RUN")


def test_the_process_has_a_numeric_user_without_rights():
    """Kubernetes' runAsNonRoot accepts only numbers."""
    user, group = map(int, FINAL.one("USER").split(":"))
    assert user >= 10_000
    assert group >= 10_000


def test_the_image_listens_on_all_addresses_and_stores_its_data_in_the_volume():
    environment = FINAL.environment()
    assert environment["GATEWAY_LISTEN"] == "0.0.0.0:8080"
    assert parse_address(environment["GATEWAY_LISTEN"]) == Address("0.0.0.0", 8080)
    assert FINAL.one("EXPOSE") == "8080"
    assert environment["GATEWAY_DATA_DIR"] == FINAL.one("VOLUME") == "/data"
    assert environment["PATH"].split(":")[0] == f"{PREFIX}/bin"


def test_the_image_starts_stops_and_is_checked_without_a_shell():
    assert FINAL.command("ENTRYPOINT") + FINAL.command("CMD") == ["gateway", "serve"]
    assert FINAL.one("STOPSIGNAL") == "SIGTERM"
    assert FINAL.healthcheck() == [f"{PREFIX}/bin/healthy"]


def test_the_build_context_has_only_the_copied_files():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    copied = [name for rest in BUILD.all("COPY") for name in rest.split()[:-1]]
    assert patterns == ["*", *(f"!{name}" for name in copied), "**/__pycache__"]


# ── the machine ─────────────────────────────────────────────────────────────────────────────


def without_rights(user: User = User(NOBODY, NOBODY)) -> dict[str, Any]:  # noqa: B008 - frozen
    """Arguments of Popen for an unprivileged process; only root can change the user."""
    if os.geteuid() != 0:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": []}


def find_python() -> str:
    """An interpreter that an unprivileged process can run: the tests' own, or the system's."""
    check = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    candidates = [f"{sys.base_prefix}/bin/python3", "/usr/local/bin/python3", "/usr/bin/python3"]
    for python in candidates:
        try:
            subprocess.run([python, "-c", check], env={}, check=True, **without_rights())
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    raise AssertionError(f"none of {candidates} is Python 3.11 with venv that every user can run")


@dataclass(frozen=True)
class Machine:
    """Folders for an unprivileged user, and processes started in them."""

    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "source"

    @property
    def prefix(self) -> Path:
        return self.folder / "opt" / "gateway"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def temporary(self) -> Path:
        """The container's /tmp."""
        return self.folder / "tmp"

    @property
    def empty(self) -> Path:
        """The container's working directory."""
        return self.folder / "empty"

    def localized(self, words: list[str]) -> list[str]:
        """A command of the image, with its paths replaced by this machine's."""
        paths = {SOURCE: str(self.tree), PREFIX: str(self.prefix)}
        for name, path in paths.items():
            words = [re.sub(rf"{name}(?=/|$)", path, word) for word in words]
        return words

    def install(self) -> None:
        """Runs the build step, as `docker build` does."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.temporary),
            "PYTHON": find_python(),
            **pip_environment(),
        }
        done = subprocess.run(
            self.localized(BUILD.one("RUN").split()),
            cwd=self.tree,
            env=environment,
            capture_output=True,
            check=False,
            text=True,
            **without_rights(),
        )
        assert done.returncode == 0, done.stderr

    def started(self, words: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Starts a command, as `docker run --user 1000670000:0` and `docker exec` do."""
        return subprocess.Popen(
            self.localized(words),
            cwd=self.empty,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **without_rights(RANDOM),
        )

    def output(self, words: list[str], environment: Mapping[str, str]) -> str:
        process = self.started(words, environment)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        return output

    def is_healthy(self, environment: Mapping[str, str]) -> bool:
        """The result of the image's health check."""
        process = self.started(FINAL.healthcheck(), environment)
        _, errors = process.communicate()
        assert errors == ""
        return process.returncode == 0


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine outside `tmp_path`, which other users cannot enter."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-image-"))
    folder.chmod(0o755)
    for name in ("opt", "data", "tmp", "home", "empty"):
        (folder / name).mkdir()
        if os.geteuid() == 0:
            os.chown(folder / name, NOBODY, NOBODY)
    (folder / "tmp").chmod(0o1777)
    machine = Machine(folder)
    machine.data.rmdir()
    # Only root can give it to another user.
    rights = DATA_RIGHTS if os.geteuid() == 0 else ["-d"]
    subprocess.run(["install", *rights, machine.data], check=True)
    copy_context(machine.tree)
    make_read_only(machine.tree)
    try:
        yield machine
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def copy_context(tree: Path) -> None:
    """Copies the files that the Dockerfile copies."""
    for rest in BUILD.all("COPY"):
        *names, target = rest.split()
        for name in names:
            source, destination = ROOT / name, tree / target
            destination.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, destination, ignore=ignore, dirs_exist_ok=True)
            else:
                shutil.copy(source, destination)


def make_read_only(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            path.chmod((path.stat().st_mode | 0o444) & ~0o222)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Time and size of all files below a folder, which differ after any change."""
    found = {str(path): path.lstat() for path in (folder, *folder.rglob("*"))}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


# ── the build step ────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.timeout(300)  # it downloads and compiles as a build does
def test_the_build_step_yields_a_gateway_that_runs_read_only(machine: Machine):
    before = state(machine.tree)
    machine.install()
    assert state(machine.tree) == before
    assert list(machine.temporary.iterdir()) == []
    assert_only_dependencies_are_installed(machine.prefix)
    assert_everything_is_compiled(machine.prefix)
    make_read_only(machine.prefix)
    make_read_only(machine.empty)
    before = state(machine.prefix) | state(machine.empty)
    assert_it_serves(machine)
    assert state(machine.prefix) | state(machine.empty) == before
    assert list(machine.temporary.iterdir()) == []
    assert any(machine.data.iterdir())


def assert_only_dependencies_are_installed(prefix: Path) -> None:
    """Only the gateway and its dependencies are installed."""
    python = prefix / "bin" / "python"
    tools = re.compile(r"pip.*|wheel|hatchling|easy_install.*|cc|gcc.*|make")
    assert [path.name for path in (prefix / "bin").iterdir() if tools.fullmatch(path.name)] == []
    (packages,) = prefix.glob("lib/python3.*/site-packages")
    assert {path.name for path in packages.iterdir()}.isdisjoint(BUILDERS)
    found = {canonicalize_name(one.name): one for one in distributions(path=[str(packages)])}
    version = subprocess.check_output(
        [python, "-c", "import platform; print(platform.python_version())"], text=True
    )
    needed = dependencies("image-gateway", found, version.strip())
    assert found.keys() == needed | {"async-timeout"}  # for Python before 3.11.3


def dependencies(name: str, found: Mapping[str, Distribution], version: str) -> set[str]:
    """A package and its dependencies on that Python, with the gateway's extra `otel`."""
    needed: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        for requirement in map(Requirement, found[name].requires or []):
            marker = requirement.marker
            extra = "otel" if name == "image-gateway" else ""
            if marker is None or marker.evaluate({"extra": extra, "python_full_version": version}):
                waiting.append(canonicalize_name(requirement.name))
    return needed


def assert_everything_is_compiled(prefix: Path) -> None:
    """Otherwise each start would compile, because the file system is read-only."""
    sources = {path.with_suffix("") for path in (prefix / "lib").rglob("*.py")}
    compiled = list(prefix.rglob("*.pyc"))
    assert {path.parent.parent / path.name.split(".")[0] for path in compiled} == sources
    assert {path.read_bytes()[4:8] for path in compiled} == {UNCHECKED_HASH}


def assert_it_serves(machine: Machine) -> None:
    """As in `docker run IMAGE`, the gateway becomes healthy, serves an image and stops."""
    with simulated_upstream(machine) as upstream:
        environment = container_environment(machine, upstream)
        assert not machine.is_healthy(environment)
        gateway = machine.started(FINAL.command("ENTRYPOINT") + FINAL.command("CMD"), environment)
        try:
            wait_until_healthy(machine, gateway, environment)
            secret = machine.output(["gateway", "keys", "add", "alice"], environment).strip()
            assert machine.output(["gateway", "config", "check"], environment).startswith("ok: ")
            assert "gateway" in machine.output(["gateway", "completion", "bash"], environment)
            first, again = (request_image(environment["GATEWAY_LISTEN"], secret) for _ in range(2))
            assert "fwd=miss; stored" in first[0]
            assert "; hit; " in again[0]
            assert first[1] == again[1]
            gateway.send_signal(signal.Signals[FINAL.one("STOPSIGNAL")])
            _, errors = gateway.communicate(timeout=GENEROUS_SECONDS)
            assert gateway.returncode == 0, errors
            assert not machine.is_healthy(environment)
        finally:
            gateway.kill()
            gateway.communicate()


def container_environment(machine: Machine, upstream: str) -> dict[str, str]:
    """The variables of the image (with a free port), of Docker, and those that a user must set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    image = FINAL.environment()
    return {
        **image,
        "PATH": image["PATH"].replace(PREFIX, str(machine.prefix)),
        "GATEWAY_LISTEN": image["GATEWAY_LISTEN"].replace("8080", str(port)),
        "GATEWAY_DATA_DIR": str(machine.data),
        "HOME": "/",
        "TMPDIR": str(machine.temporary),
        "UPSTREAM_BASE_URL": upstream,
        "UPSTREAM_API_KEY": "sk-x",
    }


@contextmanager
def simulated_upstream(machine: Machine) -> Iterator[str]:
    """Runs the image's simulated upstream; yields its base URL."""
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(machine.temporary)}
    words = ["simulate", "--listen", "127.0.0.1:0", "--latency-scale", "0"]
    simulator = machine.started([f"{PREFIX}/bin/gateway", *words], environment)
    assert simulator.stdout is not None
    try:
        yield simulator.stdout.readline().removeprefix("Simulated upstream at ").strip()
    finally:
        simulator.terminate()
        simulator.communicate()


def wait_until_healthy(
    machine: Machine, gateway: subprocess.Popen[str], environment: Mapping[str, str]
) -> None:
    def has_ended_or_is_healthy() -> bool:
        return gateway.poll() is not None or machine.is_healthy(environment)

    until(has_ended_or_is_healthy)
    assert gateway.poll() is None, gateway.communicate()


def request_image(listen: str, secret: str) -> tuple[str, bytes]:
    """Requests an image; returns its Cache-Status and its bytes."""
    body = {"model": "gpt-image-2", "prompt": "an otter in a box", "size": "1024x1024"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{parse_address(listen).port}/v1/images/generations",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
    )
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with straight.open(request, timeout=GENEROUS_SECONDS) as answer:
        image = json.load(answer)["data"][0]["b64_json"]
        return answer.headers["Cache-Status"], base64.b64decode(image)


# ── the script alone ────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.timeout(180)  # venv and pip are slow on a busy machine
def test_the_pip_of_the_base_image_can_be_removed(tmp_path: Path):
    """A virtual environment looks like /usr/local of the base image, except for ensurepip."""
    prefix = tmp_path / "usr" / "local"
    subprocess.run([find_python(), "-m", "venv", str(prefix)], env={}, check=True)
    (packages,) = prefix.glob("lib/python3.*/site-packages")
    (packages.parent / "ensurepip" / "_bundled").mkdir(parents=True)
    assert (packages / "pip").exists()
    subprocess.run([ROOT / "deploy" / "install.sh", "--strip", str(prefix)], check=True)
    left = {path.name for path in (*packages.parent.iterdir(), *packages.iterdir())}
    assert left.isdisjoint(BUILDERS)
    assert list((prefix / "bin").glob("pip*")) == []
    subprocess.run([prefix / "bin" / "python", "-c", "import json, ssl"], check=True)


@pytest.mark.parametrize("words", [[], ["only-one"], ["one", "two", "three"]])
def test_a_wrong_number_of_arguments_prints_the_usage(words: list[str]):
    result = subprocess.run(
        [ROOT / "deploy" / "install.sh", *words], capture_output=True, check=False, text=True
    )
    assert result.returncode == 2
    assert re.findall(r"install\.sh (\S+) PREFIX", result.stderr) == ["SOURCE", "--strip"]


def test_an_existing_folder_is_refused(tmp_path: Path):
    result = subprocess.run(
        [ROOT / "deploy" / "install.sh", ROOT, tmp_path],
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == f"{tmp_path} exists: name a new folder\n"
    assert list(tmp_path.iterdir()) == []


def test_the_health_check_uses_the_address_of_the_gateway(tmp_path: Path):
    """Also with the IPv6 wildcard. A server without an HTTP response is not healthy."""
    healthy = [sys.executable, ROOT / "deploy" / "healthy.py"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        listen = f"0.0.0.0:{silent.getsockname()[1]}"
        with subprocess.Popen(healthy, env={"GATEWAY_LISTEN": listen}) as check:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(65536).startswith(b"GET /healthz HTTP/1.1\r\n")
                connection.sendall(b"SSH-2.0-otter\r\n")
    assert check.returncode == 1
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        listen = f"[::]:{server.getsockname()[1]}"
        with subprocess.Popen(healthy, env={"GATEWAY_LISTEN": listen}) as check:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert check.returncode == 0


async def test_the_health_check_works_with_tls(tmp_path: Path):
    async with (
        run_upstream() as upstream,
        run_processes(
            tmp_path, upstream.base_url, workers=1, options={"server": {"tls": TLS_SETTINGS}}
        ) as (_, client),
    ):
        environment = {"GATEWAY_LISTEN": f"0.0.0.0:{client.url.rpartition(':')[2]}"}
        check = await asyncio.create_subprocess_exec(
            sys.executable, ROOT / "deploy" / "healthy.py", env=environment
        )
        assert await check.wait() == 0
