"""Builds an image without a daemon, by buildah, and runs it by runc. Both need root.

The base of the image is a Debian from debootstrap with a Python at /usr/local, as in the images
of Docker's library, whose registry is not asked.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.other_users import User
from tests.pip_settings import pip_config_file, pip_paths
from tests.waiting import GENEROUS_SECONDS, until

BASE, IMAGE = "localhost/python-base", "localhost/image-gateway"

_SUITE = "trixie"
_NEEDED = {
    "buildah": "buildah",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
}


def skip_without_tools() -> None:
    """Skips the test unless all tools are there; the reason names the packages to install."""
    if os.geteuid() != 0:
        pytest.skip("only root can build a Debian and mount its layers")
    missing = [package for tool, package in _NEEDED.items() if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"missing: apt-get install {' '.join(missing)}")


def _run(*words: str | Path) -> str:
    """Runs a command to its end; returns its output."""
    done = subprocess.run(words, capture_output=True, check=False, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class ImageStore:
    """Images of a test, in a folder of their own."""

    folder: Path

    def buildah(self, *words: str | Path) -> str:
        roots = ("--root", self.folder / "images", "--runroot", self.folder / "run")
        return _run("buildah", *roots, *words)

    def make_base(self) -> None:
        """Makes `BASE`. A virtual environment at /usr/local stands for a Python that is there."""
        root = self.folder / "debian"
        packages = "--include=ca-certificates,python3-venv"
        _run("unshare", "--mount", "debootstrap", "--variant=minbase", packages, _SUITE, root)
        _run("chroot", root, "python3", "-m", "venv", "/usr/local")
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, root, "/")
        self.buildah("commit", "--quiet", "--rm", "--format", "docker", container, BASE)
        shutil.rmtree(root)

    def build(self, source: Path) -> None:
        """Makes `IMAGE` from a Dockerfile. pip finds packages as it does on this machine."""
        config = self.folder / "pip.conf"
        config.write_text(pip_config_file())
        mounts = {Path("/etc/pip.conf"): config, **{path: path for path in pip_paths()}}
        volumes = [f"--volume={here}:{there}:ro" for there, here in mounts.items()]
        # Only Docker's format has a health check.
        options = ("--isolation", "chroot", "--format", "docker", "--pull-never")
        argument = f"--build-arg=BASE={BASE}"
        self.buildah("bud", *options, argument, *volumes, "--tag", IMAGE, source)

    def size(self, image: str) -> int:
        """The bytes of all layers."""
        (found,) = json.loads(self.buildah("images", "--json", image))
        manifest = json.loads(self.buildah("inspect", "--type", "image", image))["Manifest"]
        assert found["names"] == [f"{image}:latest"]
        return sum(layer["size"] for layer in json.loads(manifest)["layers"])

    def config(self, image: str) -> dict[str, Any]:
        """Docker's configuration of a container of this image."""
        inspected = json.loads(self.buildah("inspect", "--type", "image", image))
        config: dict[str, Any] = inspected["Docker"]["config"]
        return config

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The root folder of a new container."""
        container = self.buildah("from", "--pull-never", image).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("umount", container)
            self.buildah("rm", container)


@contextmanager
def open_image_store(folder: Path) -> Iterator[ImageStore]:
    """Images below `folder`. In the end nothing of them is mounted."""
    store = ImageStore(folder)
    try:
        yield store
    finally:
        store.buildah("rm", "--all")


@dataclass
class Container:
    """A container that runs."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path
    _runc: Sequence[str | Path]

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, with its user, environment and rights."""
        command = [*self._runc, "exec", self.name, *words]
        return subprocess.run(command, capture_output=True, check=False, text=True)

    def output(self, *words: str) -> str:
        done = self.execute(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def kill(self, signal: str) -> None:
        """Sends a signal to the first process of the container."""
        _run(*self._runc, "kill", self.name, signal)

    def status(self) -> int:
        """The exit status, once it has ended."""
        return self.process.wait(GENEROUS_SECONDS)

    @property
    def log(self) -> str:
        return self.log_file.read_text()


@contextmanager
def run_container(
    folder: Path,
    root: Path,
    config: Mapping[str, Any],
    *,
    user: User,
    volumes: Mapping[str, Path],
    environment: Mapping[str, str],
) -> Iterator[Container]:
    """Runs an image's command as `docker run --read-only --tmpfs /tmp --cap-drop ALL` does.

    Also with `--security-opt no-new-privileges --network host`.
    """
    name = f"image-gateway-{secrets.token_hex(4)}"
    bundle = folder / name
    bundle.mkdir()
    spec = _specification(root, config, user=user, volumes=volumes, environment=environment)
    (bundle / "config.json").write_text(json.dumps(spec))
    runc = ("runc", "--root", folder / "runc")
    log_file = bundle / "container.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*runc, "run", "--bundle", bundle, name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    container = Container(name, process, log_file, runc)
    try:
        yield container
    finally:
        subprocess.run([*runc, "delete", "--force", name], capture_output=True, check=False)
        process.wait(GENEROUS_SECONDS)


def until_healthy(container: Container, check: Sequence[str]) -> None:
    """Waits until a health check passes. A container that ends fails the test, with its log."""

    def is_healthy_or_ended() -> bool:
        return container.process.poll() is not None or container.execute(*check).returncode == 0

    until(is_healthy_or_ended)
    assert container.process.poll() is None, container.log


def _specification(
    root: Path,
    config: Mapping[str, Any],
    *,
    user: User,
    volumes: Mapping[str, Path],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """A `config.json` of the OCI's runtime specification, 1.0."""
    variables = dict(line.split("=", 1) for line in config["Env"]) | environment
    kept = ["nosuid", "noexec", "nodev"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": kept},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": kept},  # noqa: S108
        *(
            {"destination": there, "type": "bind", "source": str(here), "options": ["rbind", "rw"]}
            for there, here in volumes.items()
        ),
    ]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": True},
        "hostname": "container",
        "process": {
            "terminal": False,
            "user": {"uid": user.uid, "gid": user.gid},
            "args": [*config["Entrypoint"], *config["Cmd"]],
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": config["WorkingDir"],
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
    }
