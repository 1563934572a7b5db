"""A master with two replicas, and three sentinels that elect another master within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

from gateway.store.redis.rights import acl_rule
from tests.ports import free_port
from tests.redis_server import binary
from tests.slow_link import SlowLink, run_slow_link
from tests.waiting import until

SERVICE: Final = "images"

SENTINELS: Final = 3

DOWN_AFTER_MS: Final = 500
"""A master that is silent for this long is replaced."""


FAILOVER_TIMEOUT_MS: Final = 4000

_TLS: Final = Path(__file__).parent / "tls"
AUTHORITY: Final = str(_TLS / "authority.pem")
TLS_LINES: Final = (
    f"tls-cert-file {_TLS / 'server.pem'}",
    f"tls-key-file {_TLS / 'server-key.pem'}",
    f"tls-ca-cert-file {AUTHORITY}",
    "tls-auth-clients no",
    # TLS between servers, and from sentinels to servers.
    "tls-replication yes",
)


@dataclass
class Node:
    """A server or a sentinel."""

    process: subprocess.Popen[bytes]
    port: int
    password: str = ""
    is_tls: bool = False

    def client(self) -> Any:
        """A connection for a test, with the default user."""
        trust: dict[str, Any] = {"ssl": True, "ssl_ca_certs": AUTHORITY} if self.is_tls else {}
        return redis.Redis(
            "127.0.0.1", self.port, password=self.password or None, protocol=2, **trust
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()


@dataclass
class SentinelServers:
    """Three servers and three sentinels; all run until the test ends them."""

    servers: Sequence[Node]
    sentinels: Sequence[Node]
    userinfo: str = ""
    options: str = ""
    link: SlowLink | None = None
    """The link from the first master to its replicas."""

    @property
    def url(self) -> str:
        """The URL for a gateway."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{self.userinfo}{hosts}/{SERVICE}/0{self.options}"

    @property
    def master(self) -> Node:
        """The server that the first sentinel names."""
        return next(each for each in self.servers if each.port == self._named_port())

    def _named_port(self) -> int:
        with self.sentinels[0].client() as client:
            reply = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(reply[1])

    def restricted(self) -> str:
        """The URL for a user who may do exactly what the documented ACL rule allows."""
        for server in self.servers:
            with server.client() as client:
                client.execute_command(*acl_rule("gateway", "right").split())
        return self.url.replace("://", "://gateway:right@")

    def fail_over(self) -> None:
        """Asks a sentinel to promote a replica, and returns once it has agreed."""

        def is_started() -> bool:
            with self.sentinels[0].client() as client:
                try:
                    client.execute_command("SENTINEL", "FAILOVER", SERVICE)
                except redis.ResponseError:  # the last one still goes on
                    return False
                return True

        until(is_started)

    def flush(self) -> str:
        """Empties the master; returns the URL."""
        with self.master.client() as client:
            client.flushall()
        return self.url

    def until_replicas(self, count: int = 2) -> None:
        """Returns once the master has so many replicas that follow it."""
        until(lambda: _has_replicas(self.master, count))


@contextmanager
def run_sentinel_servers(
    folder: Path,
    *,
    server_options: Sequence[str] = (),
    sentinel_lines: Sequence[str] = (),
    password: str = "",
    sentinel_password: str = "",
    replication_seconds: float | None = None,
    is_tls: bool = False,
) -> Iterator[SentinelServers]:
    """Runs them in `folder`. A master needs one replica that has not been silent for 2 s.

    With `is_tls` they only speak TLS, and require no certificate of clients. With
    `replication_seconds` everything from the first master reaches its replicas that much later.
    """
    with ExitStack() as stack:
        servers: list[Node] = []
        link: SlowLink | None = None
        for i in range(3):
            master = servers[0].port if servers else None
            if master is not None and replication_seconds is not None:
                link = link or stack.enter_context(
                    run_slow_link(master, delay_seconds=replication_seconds)
                )
                master = link.port
            options = [*server_options, *(_as_options(TLS_LINES) if is_tls else [])]
            servers.append(
                _start_server(folder / f"server{i}", master, password, options, is_tls=is_tls)
            )
            stack.callback(_end, servers[-1])
            # A replica that cannot connect to its master tries again a second later.
            until(partial(_answers, servers[-1]))
        # A sentinel asks its master for replicas at first, and then every ten seconds.
        until(lambda: _has_replicas(servers[0], 2))
        sentinels: list[Node] = []
        for i in range(SENTINELS):
            sentinels.append(
                _start_sentinel(
                    folder / f"sentinel{i}",
                    servers[0].port,
                    password,
                    sentinel_password,
                    [*(TLS_LINES if is_tls else []), *sentinel_lines],
                    is_tls=is_tls,
                )
            )
            stack.callback(_end, sentinels[-1])
        found = SentinelServers(servers, sentinels, link=link)
        until(lambda: all(_answers(each) for each in (*servers, *sentinels)))
        until(lambda: all(_knows_all(each) for each in sentinels))
        yield found


def _as_options(lines: Sequence[str]) -> list[str]:
    return [word for line in lines for word in f"--{line}".split(" ", 1)]


def _start_server(
    folder: Path, master: int | None, password: str, options: Sequence[str], *, is_tls: bool
) -> Node:
    folder.mkdir(parents=True)
    port = free_port()
    given = ["--replicaof", "127.0.0.1", str(master)] if master is not None else []
    if password:
        given += ["--requirepass", password, "--masterauth", password]
    process = subprocess.Popen(
        [
            binary(), "--bind", "127.0.0.1", "--dir", str(folder),
            *(["--port", "0", "--tls-port"] if is_tls else ["--port"]), str(port),
            "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0",
            "--repl-ping-replica-period", "1", "--min-replicas-to-write", "1",
            "--min-replicas-max-lag", "2", *given, *options,
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return Node(process, port, password, is_tls)


def _start_sentinel(
    folder: Path,
    master: int,
    password: str,
    own_password: str,
    lines: Sequence[str],
    *,
    is_tls: bool,
) -> Node:
    folder.mkdir(parents=True)
    port = free_port()
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        "\n".join(
            [
                *(["port 0", f"tls-port {port}"] if is_tls else [f"port {port}"]),
                "bind 127.0.0.1",
                f"dir {folder}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2",
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
                f"sentinel parallel-syncs {SERVICE} 2",
                *([f"sentinel auth-pass {SERVICE} {password}"] if password else []),
                *([f"requirepass {own_password}"] if own_password else []),
                *([f"sentinel sentinel-pass {own_password}"] if own_password else []),
                *lines,
                "",
            ]
        )
    )
    process = subprocess.Popen(
        [binary(), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL
    )
    return Node(process, port, own_password, is_tls)


def _answers(node: Node) -> bool:
    assert node.process.poll() is None, "a server has ended"
    try:
        with node.client() as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _has_replicas(master: Node, count: int) -> bool:
    with master.client() as client:
        info = client.info("replication")
    online = [info.get(f"slave{i}", {}).get("state") == "online" for i in range(3)]
    return sum(online) >= count


def _knows_all(sentinel: Node) -> bool:
    with sentinel.client() as client:
        reply = client.execute_command("SENTINEL", "MASTER", SERVICE)
    fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    known = {_text(name): _text(value) for name, value in fields.items()}
    return known["num-other-sentinels"] == str(SENTINELS - 1) and known["num-slaves"] == "2"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _end(node: Node) -> None:
    if node.process.poll() is None:
        os.kill(node.process.pid, signal.SIGCONT)
        node.kill()
