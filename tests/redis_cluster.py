"""A real Redis Cluster for tests: three masters with a replica each, on free ports.

`REDIS_SERVER` names another server program, as in `redis_server`.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from gateway.store.redis.rights import acl_rule
from tests.ports import free_port
from tests.redis_server import binary
from tests.waiting import until

SLOTS = 16384
NODE_TIMEOUT_MS = 800

_TLS = Path(__file__).parent / "tls"
AUTHORITY = str(_TLS / "authority.pem")
_TLS_OPTIONS = (
    "--tls-cert-file", str(_TLS / "server.pem"), "--tls-key-file", str(_TLS / "server-key.pem"),
    # The nodes are clients of each other.
    "--tls-client-cert-file", str(_TLS / "client.pem"),
    "--tls-client-key-file", str(_TLS / "client-key.pem"), "--tls-auth-clients", "no",
    "--tls-cluster", "yes", "--tls-replication", "yes",
    "--cluster-announce-hostname", "localhost",
    "--cluster-preferred-endpoint-type", "hostname",
)  # fmt: skip


@dataclass
class Node:
    """A server of the cluster, which a test can stop and start again."""

    port: int
    folder: Path
    options: Sequence[str]
    program: str
    is_tls: bool = False
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        ports = ["--port", str(self.port)]
        if self.is_tls:
            ports = ["--port", "0", "--tls-port", str(self.port)]
        command = [self.program, *ports, "--dir", str(self.folder)]
        self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def run(self, *command: str | int | bytes) -> Any:
        """A command for this very node. Raises redis-py's errors."""
        trust: dict[str, Any] = {"ssl": True, "ssl_ca_certs": AUTHORITY} if self.is_tls else {}
        with redis.Redis(port=self.port, socket_timeout=10, **trust) as client:
            return client.execute_command(*command)

    @property
    def id(self) -> str:
        return _text(self.run("CLUSTER", "MYID"))

    def is_master(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.run("ROLE")[0] in (b"master", "master"))
        return False

    def knows(self, count: int) -> bool:
        with suppress(redis.RedisError):
            found = _text(self.run("CLUSTER", "INFO"))
            return f"cluster_known_nodes:{count}" in found and "cluster_state:ok" in found
        return False


@dataclass
class RedisCluster:
    """Its nodes: the masters, then their replicas in the same order."""

    nodes: list[Node]
    credentials: str = ""

    @property
    def url(self) -> str:
        hosts = ",".join(node.name for node in self.nodes[:3])
        return f"redis+cluster://{self.credentials}{hosts}/0"

    def owner(self, key: str) -> Node:
        """The master that has the slot of the key."""
        return self.owner_of_slot(key_slot(key.encode()))

    def owner_of_slot(self, slot: int) -> Node:
        for node in self.nodes:
            with suppress(redis.RedisError):
                for first, last, master, *_ in node.run("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        port = master[1]
                        return next(each for each in self.nodes if each.port == port)
        raise AssertionError(f"no node has slot {slot}")

    def masters(self) -> list[Node]:
        return [node for node in self.nodes if node.is_master()]

    def replica_of(self, master: Node) -> Node:
        """A replica that is connected to this master."""
        found: list[Node] = []

        def search() -> bool:
            for node in self.nodes:
                with suppress(redis.RedisError):
                    role = node.run("ROLE")
                    is_its = _text(role[0]) == "slave" and role[2] == master.port
                    if is_its and _text(role[3]) == "connected":
                        found.append(node)
                        return True
            return False

        until(search)
        return found[0]

    def flush(self) -> None:
        """Deletes all data."""
        for node in self.masters():
            node.run("FLUSHALL")

    def everywhere(self, *command: str | int) -> None:
        for node in self.nodes:
            node.run(*command)

    def restricted(self) -> str:
        """The URL for a user who may do exactly what the documented ACL rule allows."""
        self.everywhere(*acl_rule("gateway", "right", is_cluster=True).split())
        return self.url.replace("://", "://gateway:right@")

    def begin_migration(self, slot: int, target: Node) -> Node:
        """Marks a slot as moving to another master, key by key; returns its present one."""
        source = self.owner_of_slot(slot)
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, slot: int, source: Node, target: Node, *, limit: int | None = None) -> int:
        """Moves up to `limit` of the slot's keys; returns how many."""
        moved = 0
        while limit is None or moved < limit:
            count = min(100, SLOTS if limit is None else limit - moved)
            keys = source.run("CLUSTER", "GETKEYSINSLOT", slot, count)
            if not keys:
                break
            source.run("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def end_migration(self, slot: int, source: Node, target: Node) -> None:
        for node in (target, source, *self.masters()):
            with suppress(redis.RedisError):
                node.run("CLUSTER", "SETSLOT", slot, "NODE", target.id)


def moves_in_one_step(cluster: RedisCluster) -> bool:
    """Whether the server has the atomic migration of slots, as Valkey 9."""
    return b"MIGRATESLOTS" in b" ".join(cluster.nodes[0].run("CLUSTER", "HELP"))


@contextmanager
def run_redis_cluster(
    folder: Path, *options: str, durable: bool = False, is_tls: bool = False
) -> Iterator[RedisCluster]:
    """Starts a cluster that is ready; further options are those of each server.

    With `is_tls` it serves TLS alone, and announces its nodes as `localhost`.
    """
    if is_tls:
        trusted = folder / "trusted.pem"
        trusted.write_text((_TLS / "authority.pem").read_text() + (_TLS / "client.pem").read_text())
        options = (*_TLS_OPTIONS, "--tls-ca-cert-file", str(trusted), *options)
    nodes: list[Node] = []
    persistence = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
    ports = [(free_port(), free_port()) for _ in range(6)]
    try:
        for i, (port, bus) in enumerate(ports):
            path = folder / f"node-{i}"
            path.mkdir()
            # Nodes that know each other from the start need not meet, which takes seconds.
            (path / "nodes.conf").write_text(_nodes_conf(ports, myself=i))
            more = [
                "--bind", "127.0.0.1", "--save", "", *persistence,
                "--cluster-enabled", "yes",
                "--cluster-port", str(bus),
                "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
                "--cluster-replica-validity-factor", "0",
                "--repl-diskless-sync-delay", "0",
                *options,
            ]  # fmt: skip
            nodes.append(Node(port, path, more, binary(), is_tls))
        cluster = RedisCluster(nodes)
        until(lambda: all(node.knows(6) for node in nodes))
        for master in nodes[:3]:
            cluster.replica_of(master)
        yield cluster
    finally:
        for node in nodes:
            node.thaw()
            node.kill()


def _nodes_conf(ports: Sequence[tuple[int, int]], *, myself: int) -> str:
    """The file in which a node keeps what it knows of the cluster."""
    ids = [hashlib.sha1(b"%d" % port, usedforsecurity=False).hexdigest() for port, _ in ports]
    lines = []
    for i, (port, bus) in enumerate(ports):
        master = i % 3
        flags = ("myself," if i == myself else "") + ("master" if i < 3 else "slave")
        slots = f" {SLOTS * i // 3}-{SLOTS * (i + 1) // 3 - 1}" if i < 3 else ""
        lines.append(
            f"{ids[i]} 127.0.0.1:{port}@{bus} {flags} {'-' if i < 3 else ids[master]}"
            f" 0 0 {master + 1} connected{slots}"
        )
    return "\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""])


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
