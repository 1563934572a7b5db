"""Fixtures for the stores, and the rule that no test is skipped in CI.

If a server is missing, its tests are skipped with a message that names the package to install. With
`CI=true` every skip fails, so a green run means that all tests have run.
"""

import gc
import os
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import create_sqlite_schema
from gateway.store.sqlite.store import open_sqlite_store
from tests.bucket_servers import CREDENTIALS, BucketServer, run_bucket_server
from tests.empty_store import place_empty_store
from tests.examples import ALL_EXAMPLES
from tests.redis_cluster import RedisCluster, run_redis_cluster
from tests.redis_server import emptied, merge_missing_server_skips, restricted, run_redis_server
from tests.sentinel_servers import SentinelServers, run_sentinel_servers
from tests.stores import TOPOLOGIES
from tests.yaml_once import parse_yaml_once

# Images of Python set it. It would hide what commands do with output that is still buffered.
os.environ.pop("PYTHONUNBUFFERED", None)

if not ALL_EXAMPLES:
    # Based on the profile that Hypothesis chose: it has one for continuous integration.
    # On a busy machine, examples take as long to make as the machine lets them.
    slow = [HealthCheck.too_slow]
    settings.register_profile("quick", max_examples=25, suppress_health_check=slow)
    settings.load_profile("quick")

parse_yaml_once()

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens the test's store once more, as another process would."""


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server of this test process."""
    with run_redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty server."""
    return emptied(redis_server)


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    """The server of object storage of this test process."""
    with run_bucket_server(tmp_path_factory.mktemp("buckets")) as server:
        yield server


@pytest.fixture
def bucket_url(bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket. The environment has its credentials."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return bucket_server.url(f"images-{secrets.token_hex(4)}")


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """The path of an embedded store's database, which is created and closed."""
    path = tmp_path / "data" / "store.sqlite3"
    place_empty_store(path)
    create_sqlite_schema(path)
    return path


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster of this test process."""
    with run_redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        # No test stops its nodes. On a machine under load, a node that is late is not down.
        cluster.everywhere("CONFIG", "SET", "cluster-node-timeout", 20_000)
        yield cluster


@pytest.fixture
def cluster_url(redis_cluster: RedisCluster) -> str:
    """The URL of a cluster without data, for a user with the rights that the docs name."""
    redis_cluster.flush()
    return redis_cluster.restricted()


@pytest.fixture(scope="session")
def sentinel_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    """A master, its replicas and their sentinels, of this test process."""
    with run_sentinel_servers(tmp_path_factory.mktemp("sentinel")) as servers:
        yield servers


@pytest.fixture
def sentinel_url(sentinel_servers: SentinelServers) -> str:
    """The URL of a master without data, for a user with the rights that the docs name."""
    sentinel_servers.flush()
    return sentinel_servers.restricted()


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    """Runs the test with a new store of each kind. Every call opens the same store."""
    if request.param == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        return lambda: open_sqlite_store(path)
    # With the rights that the documentation says are enough.
    if request.param in ("sentinel", "cluster"):
        url: str = request.getfixturevalue(f"{request.param}_url")
    else:
        url = restricted(request.getfixturevalue("redis_url"))
    return lambda: open_redis_store(url)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Lets each worker of pytest-xdist import other modules first.

    All workers collect in the same order, so without this each would compile every module of a
    fresh checkout. With it, a module is mostly compiled by one of them.
    """
    gc.disable()  # until the tests run: what a collection makes stays
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args != session.config.getini("testpaths"):
        return
    root = session.config.rootpath
    modules = sorted(root.glob("tests/**/test_*.py"))
    first = int(worker["workerid"].removeprefix("gw")) * len(modules) // worker["workercount"]
    for path in modules[first:] + modules[:first]:
        # The collection reports what fails.
        with suppress(Exception, pytest.skip.Exception):
            import_module(".".join(path.relative_to(root).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Fails if a test module imports the program's entry point.

    It sets the metrics and the umask of the whole process, and so those of all other tests.
    """
    if "gateway.__main__" in sys.modules:
        raise pytest.UsageError("A test imports gateway.__main__: import gateway.cli.main instead.")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Lets the garbage collector skip all modules and tests, which stay until the end."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    merge_missing_server_skips(report)
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _fail_in_ci(report)
    return report


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str] | None:
    """Names a failed test at once, because a run that is ended from outside has no summary."""
    if not report.failed:
        return None
    if report.when == "call":
        return "failed", f"F {report.nodeid}\n", "FAILED"
    return "error", f"E {report.nodeid}\n", "ERROR"


def _fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") != "true":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"skipped in continuous integration: {reason}"
