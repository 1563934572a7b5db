"""The repository: its dependencies, the wheel, the make targets, and the tests."""

import ast
import hashlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from re import _parser
from re._constants import BRANCH, MAX_REPEAT, POSSESSIVE_REPEAT, SUBPATTERN
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.waiting import GENEROUS_SECONDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REGISTRIES = {
    "a4aa2ac280bb8d1a",
    "8b5bb5eb9d758455",
    "8743857e3ea00fd1",
    "789e46d79514e280",
    "00a7dc5a0cc38858",
}
"""The hosts of package registries, as prefixes of their SHA-256: no file may name one, including
this file."""

PYTHONS = sorted(
    re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE), key=Version
)
"""The supported versions, oldest first."""

HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")


def repository_files() -> list[Path]:
    """All files that Git tracks or does not ignore."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    names = listing.stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def digests_of(host: str) -> set[str]:
    """The digests of a host and of its parent domains."""
    labels = host.split(".")
    domains = [".".join(labels[start:]) for start in range(len(labels) - 1)]
    return {hashlib.sha256(domain.encode()).hexdigest()[:16] for domain in domains}


def name_of(requirement: str) -> str:
    """The normalised name of a package, as in lock files."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def locked(name: str) -> dict[str, str]:
    """The versions in a lock file, by package."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


# ── installation ────────────────────────────────────────────────────────────────────────────


def test_no_file_names_a_package_registry():
    """Users choose the registry that packages come from."""
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in repository_files()
        for host in set(HOST.findall(path.read_text(errors="replace").lower()))
        if not REGISTRIES.isdisjoint(digests_of(host))
    ]
    assert found == []


def test_no_python_file_cites_a_document_outside_the_repository():
    """Facts and their sources are in docs/reference/."""
    outside = re.compile(r"\b(?:CONTRACT|WIRE|WIRE-2|HOUSE|BENCH|STYLE)(?:\.md| §)")
    sources = [path for path in repository_files() if path.suffix in {".py", ".lua", ".md"}]
    citing = [path for path in sources if outside.search(path.read_text())]

    assert citing == []


def test_no_pattern_has_a_possessive_group():
    """Python 3.11.2, which Debian 12 has, matches them wrongly: write `(?>(?:…)*)` instead."""
    for name in ("gateway.assembly", "gateway.cli.main", "gateway.simulator.server"):
        importlib.import_module(name)  # with all that they import
    found = [
        f"{module.__name__}: {pattern.pattern!r}"
        for module in list(sys.modules.values())
        if module.__name__.startswith("gateway.")
        for pattern in vars(module).values()
        if isinstance(pattern, re.Pattern) and has_possessive_group(_parser.parse(pattern.pattern))
    ]
    assert found == []


def has_possessive_group(parsed: Any) -> bool:
    """Whether more than one character is repeated possessively."""
    if not isinstance(parsed, (_parser.SubPattern, list, tuple)):
        return False
    if isinstance(parsed, tuple) and parsed and parsed[0] is POSSESSIVE_REPEAT:
        repeated = parsed[1][2]
        if len(repeated) != 1 or repeated[0][0] in (BRANCH, SUBPATTERN, MAX_REPEAT):
            return True
    return any(has_possessive_group(part) for part in parsed)


def test_every_dependency_is_locked():
    install = (ROOT / "requirements" / "install.in").read_text().splitlines()
    also = [line for line in install if line and not line.startswith("#")]
    wanted = {name_of(requirement) for requirement in PROJECT["dependencies"] + also}
    assert wanted <= locked("run.lock").keys()
    for extra in PROJECT["optional-dependencies"].values():
        wanted |= {name_of(requirement) for requirement in extra}
    assert wanted <= locked("dev.lock").keys()


def test_tests_run_with_the_versions_that_users_get():
    assert locked("run.lock").items() <= locked("dev.lock").items()


@pytest.mark.parametrize("name", ["run.lock", "dev.lock", "valkey.lock"])
def test_every_locked_package_has_hashes_and_the_file_has_no_options(name: str):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    packages = [line for line in lines if re.match(r"[a-z0-9]", line)]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ \\", line) for line in packages)
    others = [line for line in lines if line not in packages]
    assert all(re.match(r"    (--hash=sha256:[0-9a-f]{64}|#)", line) for line in others)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_are_complete_on_every_python(python: str):
    """pip installs without resolving, so packages that only one Python needs are locked too."""
    versions = locked("dev.lock")
    release = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for name in versions:
        package = distribution(name)
        assert f"{python}.0" in SpecifierSet(package.metadata.get("Requires-Python", "")), name
        for needed in map(Requirement, package.requires or []):
            if needed.marker is None or needed.marker.evaluate(release):
                assert versions[name_of(needed.name)] in needed.specifier, (name, str(needed))


def test_the_readme_names_the_same_pythons_and_the_image_runs_on_the_newest():
    readme, dockerfile = ((ROOT / name).read_text() for name in ("README.md", "Dockerfile"))
    documented = re.findall(r"^\| (3\.\d+) \|", readme, re.MULTILINE)
    assert sorted(documented, key=Version) == PYTHONS
    assert re.findall(r"^ARG BASE=python:(3\.\d+)-", dockerfile, re.MULTILINE) == PYTHONS[-1:]


@pytest.mark.parametrize(("in_ci", "status"), [("", 0), ("true", 1)])
def test_another_debian_is_skipped_in_one_line_without_root_or_debootstrap(in_ci: str, status: int):
    result = subprocess.run(
        [ROOT / ".ci" / "debian", "trixie", "true"],
        env={"PATH": "/usr/bin:/bin", "CI": in_ci},  # debootstrap is in /usr/sbin
        capture_output=True,
        check=False,
        text=True,
    )
    assert (result.returncode, result.stdout) == (status, "")
    assert re.fullmatch(
        r"Debian trixie is skipped: it needs (root|debootstrap: .*)\n", result.stderr
    )


# ── the wheel ───────────────────────────────────────────────────────────────────────────────


def test_the_wheel_has_everything_that_the_gateway_reads(tmp_path: Path):
    """The wheel also contains `config/`, and no tests."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    config = {f"gateway/config/{path.name}" for path in (ROOT / "config").iterdir()}
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gateway").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert config | package <= packed
    assert not any(name.startswith("tests/") for name in packed)


# ── the commands ────────────────────────────────────────────────────────────────────────────


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make as a user does, even if `make test` started these tests."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environ.pop("MFLAGS", None)
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environ, capture_output=True, check=False, text=True
    )


def test_make_without_arguments_lists_all_targets():
    text = (ROOT / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert declared is not None
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    listing = make().stdout.splitlines()
    listed = {line.split()[1] for line in listing if line.startswith("make ")}
    assert targets == set(declared[1].split()) == listed


@pytest.mark.parametrize(
    ("python", "message"),
    [("exit 1", "Python 3.11 or newer is needed"), ("[ $# -lt 2 ] || ! [[ $2 == *venv ]]", "venv")],
)
def test_an_unusable_python_is_reported_in_one_line(tmp_path: Path, python: str, message: str):
    """A stand-in for the interpreter fails one of the checks."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/bash\n{python}\n")
    stand_in.chmod(0o755)
    done = make("run", f"PYTHON={stand_in}", f"VENV={tmp_path / 'venv'}")
    first, rest = done.stderr.split("\n", 1)
    assert done.returncode == 2
    assert message in first
    assert rest.startswith("make: ***")
    assert not (tmp_path / "venv").exists()


# ── the tests ───────────────────────────────────────────────────────────────────────────────

CLOCKS = {"monotonic", "perf_counter", "time"}
WITH_SECONDS = re.compile(r"\.(timeout|wait_for|monotonic|perf_counter|time)\(|eventually\(")
"""Without one of these calls, a module needs not be parsed."""


def is_timed(node: ast.AST) -> bool:
    """Whether a test or a test class has the mark `timed`, also for only some parameters."""
    marks = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
    return any("mark.timed" in mark for mark in marks)


def expects_timeout(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and "raises(TimeoutError)" in ast.unparse(node.items[0])


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value > 0


def reads_clock(node: ast.AST) -> bool:
    """Whether an expression is an elapsed time."""
    is_elapsed = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
    calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
    return is_elapsed and any(isinstance(f, ast.Attribute) and f.attr in CLOCKS for f in calls)


def is_bound_in_seconds(node: ast.AST) -> bool:
    """Whether a node is a timeout given as a number, or an upper bound of an elapsed time.

    A wait for a state may have another bound if that is longer than the usual one.
    """
    match node:
        case ast.Call(func=ast.Attribute(ast.Name("asyncio"), "timeout" | "wait_for")):
            return is_number(node.args[-1])
        case ast.Call(func=ast.Name("eventually"), keywords=[ast.keyword("seconds", value)]):
            return is_number(value) and ast.literal_eval(value) < GENEROUS_SECONDS
        case ast.Compare():
            terms = [node.left, *node.comparators]
            pairs = zip(terms, node.ops, terms[1:], strict=False)
            return any(isinstance(op, ast.Lt) and reads_clock(left) for left, op, _ in pairs)
        case _:
            return False


def bounds_in_seconds(node: ast.AST) -> Iterator[int]:
    """The lines with bounds in seconds, outside of tests marked `timed`."""
    if is_timed(node) or expects_timeout(node):
        return
    if is_bound_in_seconds(node):
        yield node.lineno  # type: ignore[attr-defined]
    for child in ast.iter_child_nodes(node):
        yield from bounds_in_seconds(child)


def test_only_timed_tests_have_bounds_in_seconds():
    """Other tests wait for a state (`tests/waiting.py`), because a machine may be slow."""
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, text in texts.items()
        if WITH_SECONDS.search(text)
        for line in bounds_in_seconds(ast.parse(text))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("async with asyncio.timeout(5): pass", 1),
        ("await asyncio.wait_for(it, 0.3)", 1),
        ("assert time.monotonic() - started < 1", 1),
        ("assert 1 < time.monotonic() - started < 2", 1),
        ("await eventually(look, seconds=2)", 1),
        ("await eventually(look, seconds=600)", 0),
        ("await eventually(look)", 0),
        ("assert time.monotonic() - started >= 0.4", 0),
        ("assert time.time() - 60 <= told", 0),
        ("async with asyncio.timeout(GENEROUS_SECONDS): pass", 0),
        ("with pytest.raises(TimeoutError): await asyncio.wait_for(it, 0.02)", 0),
    ],
)
def test_a_bound_in_seconds_is_found(code: str, count: int):
    for mark, expected in (("", count), ("@pytest.mark.timed\n", 0)):
        tree = ast.parse(f"{mark}async def test_it():\n    {code}")
        assert len(list(bounds_in_seconds(tree))) == expected


SKIPPING = {
    "test_in_the_test.py": "import pytest\n\ndef test_it():\n    pytest.skip('no server')\n",
    "test_by_a_mark.py": "import pytest\n\n@pytest.mark.skip('no server')\ndef test_it(): ...\n",
    "test_whole_file.py": "import pytest\n\npytest.skip('none', allow_module_level=True)\n",
}


@pytest.mark.parametrize("is_ci", [False, True])
def test_a_skip_fails_in_continuous_integration_and_only_there(tmp_path: Path, is_ci: bool):
    """Even if a dependency of the tests has installed its own `tests` package (sniffpy)."""
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    for name, text in SKIPPING.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "--continue-on-collection-errors", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ
        | {
            "CI": str(is_ci).lower(),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == (pytest.ExitCode.TESTS_FAILED if is_ci else pytest.ExitCode.OK)
    assert done.stdout.count("skipped in continuous integration: ") == (3 if is_ci else 0)
    assert ("3 skipped" in done.stdout) == (not is_ci)
