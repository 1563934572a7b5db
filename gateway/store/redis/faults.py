"""What an error of Redis means: may another connection help, and what can the operator do?

`client` and `connection` decide by this; the texts are for logs, `/readyz` and the command line,
and never for clients. They quote no argument and no password.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis import exceptions as redis_errors

CONNECTION_ERRORS: Final = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.InvalidResponse,
    OSError,  # includes asyncio's TimeoutError
)
"""The server is unavailable, silent, or does not speak Redis' protocol."""

CLUSTER: Final = (
    "is a node of a Redis Cluster: the URL should begin with redis+cluster://"
    " (docs/reference/cluster.md)."
)

NOT_REDIS: Final = "does not speak Redis' protocol: check host and port."

NO_TLS: Final = (
    "does not speak TLS: the URL should begin with redis://, or not have ssl=true behind sentinels"
    " and in a cluster."
)

TLS: Final = (
    "speaks TLS: the URL should begin with rediss://, or have ssl=true behind sentinels and in a"
    " cluster."
)

_RETIRING: Final = {
    "READONLY": "is a read-only replica: give the address of its master, or promote it"
    " (REPLICAOF NO ONE).",
    "LOADING": "is loading its data, and takes commands once it has (`INFO persistence` shows how"
    " far it is).",
    "MASTERDOWN": "is a replica that has lost its master: start that master, or promote the replica"
    " (REPLICAOF NO ONE).",
    "CLUSTERDOWN": "is in a cluster that is down: CLUSTER INFO and CLUSTER NODES say which slots"
    " have no master.",
    "NOREPLICAS": "refuses writes, because it has fewer replicas than min-replicas-to-write: start"
    " a replica, or give the address of the server that has replaced it.",
    "NOAUTH": "needs a password (NOAUTH): put USER:PASSWORD@ into the URL, before the host.",
    "UNBLOCKED": "has become a replica: give the address of its master.",
}
"""Codes of a server that takes no writes of ours now, though another at the same address may.

It has executed nothing of the command that it answers so."""

_RETIRING_ELECTED: Final = {
    **dict.fromkeys(
        ("READONLY", "UNBLOCKED"),
        "is a replica now: the gateway looks for the master that was elected instead.",
    ),
    "MASTERDOWN": "is a replica that has lost its master: the gateway looks for the next one.",
    "NOREPLICAS": "refuses writes, because it has fewer replicas than min-replicas-to-write: start"
    " a replica. If it was cut off, the gateway looks for the master that is elected instead.",
}
"""The same, if sentinels or a cluster elect the master."""

OTHER_CODES: Final = {
    "MISCONF": "cannot save its data to disk (MISCONF), so it refuses writes: see its log.",
    "BUSY": "is busy with a script.",
    "TRYAGAIN": "is moving its keys.",
    "MOVED": CLUSTER,
    "ASK": CLUSTER,
    "CROSSSLOT": CLUSTER,
    "WRONGPASS": "refuses user or password (WRONGPASS): correct the URL; signs like / and @ in a"
    " password are written as %2F and %40.",
    "DENIED": "is in protected mode and refuses other machines: set a password (requirepass) and"
    " put it into the URL, or turn protected-mode off.",
}

_UNTIL_CHANGED: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "MOVED", "ASK", "CROSSSLOT")
"""Codes that stay until an operator changes something."""

_SCRIPT_ERROR: Final = re.compile(r"-([A-Z]+) ")
"""The code of an error inside a script's error, as proxies and older servers write it."""

_NO_COMMAND: Final = re.compile(r"run the '([\w|-]+)' command")
_UNKNOWN_COMMAND: Final = re.compile(r"unknown command '?`?([\w|-]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a server cannot be used, as the end of a sentence that begins with its name."""

    text: str
    lasts: bool = False
    """It lasts until an operator changes the server or the gateway's settings."""


class NoMaster(redis_errors.ConnectionError):
    """Sentinels name no master."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


class NoAddress(redis_errors.ConnectionError):
    """A cluster announces a node without a usable address."""

    def __init__(self, host: object) -> None:
        self.fault = Fault(
            f"announces a node as {str(host or '')[:64]!r}, which is no address: set"
            " cluster-announce-hostname on each node, or cluster-preferred-endpoint-type ip.",
            lasts=True,
        )
        super().__init__(self.fault.text)


class NotMaster(redis_errors.ReadOnlyError):
    """The server that sentinels name is no master, or will be none in a moment."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def code_of(error: BaseException) -> str:
    """The first word of an error reply; empty if the error is no reply."""
    code = str(getattr(error, "status_code", None) or "")
    if not code and isinstance(error, redis_errors.RedisError):
        code = str(error).partition(" ")[0]
    if code in ("", "ERR") or not code.isupper():
        inner = _SCRIPT_ERROR.search(str(error))
        code = inner[1] if inner else "ERR"
    return code


def is_reply(error: BaseException) -> bool:
    """Whether the server itself said so."""
    has_code = getattr(error, "status_code", None) is not None
    return has_code or isinstance(error, redis_errors.ResponseError)


def set_node(reply: redis_errors.RedisError, name: str) -> None:
    """Notes which node of a cluster replied so, for `node_of`."""
    vars(reply)["node"] = name


def node_of(reply: BaseException) -> str | None:
    """The name of the node that replied so; None outside a cluster."""
    return getattr(reply, "node", None)


def retires(error: BaseException) -> bool:
    """Whether the connection should be replaced: another server may answer at the address."""
    if isinstance(error, NotMaster):
        return True
    return isinstance(error, redis_errors.RedisError) and code_of(error) in _RETIRING


def refuses_in_script(error: BaseException) -> bool:
    """Whether the ACL refuses a command of a script, which the error does not name."""
    text = str(error)
    return "The user executing the script" in text or "ACL failure in script" in text


def find_fault(
    error: BaseException, *, user: str, prefix: str, is_tls: bool, is_elected: bool = False
) -> Fault | None:
    """What an operator should know of `error`; None for a reply that is a bug of ours.

    `user` is the one of the URL, and `prefix` that of all keys. `is_elected` is as in `Addresses`.
    """
    if isinstance(error, (NoMaster, NoAddress, NotMaster)):
        return error.fault
    code, text = code_of(error), str(error)
    if code in _RETIRING or code in OTHER_CODES:
        elected = _RETIRING_ELECTED.get(code) if is_elected else None
        known = elected or _RETIRING.get(code) or OTHER_CODES[code]
        return Fault(known, lasts=code in _UNTIL_CHANGED)
    if (missing := missing_right(error, user=user, prefix=prefix)) is not None:
        return Fault(missing, lasts=True)
    if isinstance(error, redis_errors.InvalidResponse):
        return Fault(NOT_REDIS, lasts=True)
    if isinstance(error, redis_errors.AuthenticationError):
        return Fault(
            "refuses the password: it has none configured for this user, so the URL needs none.",
            lasts=True,
        )
    if "max number of clients" in text:
        return Fault("has reached maxclients: raise it, or close other clients.")
    if "DB index is out of range" in text or "invalid DB index" in text:
        return Fault(
            "has no database of this number: end the URL with /0, or raise `databases` in"
            " redis.conf.",
            lasts=True,
        )
    if "not allowed in cluster mode" in text or "cluster support" in text:
        return Fault(CLUSTER, lasts=True)
    if isinstance(error, CONNECTION_ERRORS):
        return find_connection_fault(error, is_tls=is_tls)
    return None


def missing_right(error: BaseException, *, user: str, prefix: str) -> str | None:
    """The right that the ACL user lacks, or the command that the server lacks, with its fix."""
    text = str(error)
    if (unknown := _UNKNOWN_COMMAND.search(text)) is not None:
        return unknown_commands([unknown[1].upper()])
    if code_of(error) != "NOPERM" and not refuses_in_script(error):
        return None
    command = _NO_COMMAND.search(text)
    if command is None and is_about_command(text):
        return (
            f"refuses its user {user} a command inside a script: `gateway doctor` names it, and"
            " docs/reference/settings.md has an ACL rule that suffices."
        )
    return missing_rights(
        [command[1].upper()] if command is not None else [],
        needs_keys=command is None and "channel" not in text,
        needs_channels=command is None and "channel" in text,
        user=user,
        prefix=prefix,
    )


def is_about_command(refusal: str) -> bool:
    """Whether the ACL refuses the command, and not its keys or its channel."""
    return "run this command" in refusal or _NO_COMMAND.search(refusal) is not None


def missing_rights(
    commands: Sequence[str], *, needs_keys: bool, needs_channels: bool, user: str, prefix: str
) -> str:
    """What the ACL refuses, and the rule that grants it."""
    refused, rules = [], []
    if commands:
        refused.append(f"the command{'s' * (len(commands) > 1)} {', '.join(commands)}")
        rules += [f"+{name.lower()}" for name in commands]
    if needs_keys:
        refused.append(f"the keys {prefix}*")
        rules.append(f"~{prefix}*")
    if needs_channels:
        refused.append(f"the channels {prefix}events:*")
        rules.append(f"&{prefix}events:*")
    return (
        f"refuses its user {user} {' and '.join(refused)}. To grant that: ACL SETUSER {user}"
        f" {' '.join(rules)} (docs/reference/settings.md#redis-acl has the rule that suffices)."
    )


def unknown_commands(names: Sequence[str], *, version: str = "") -> str:
    """That the server is too old for the gateway, or its commands are renamed."""
    return (
        f"does not know {', '.join(names)}{f' (its version is {version})' if version else ''}: the"
        " gateway needs Redis 7 or newer, or Valkey 8 or newer, without rename-command for these."
    )


def find_connection_fault(error: BaseException, *, is_tls: bool) -> Fault:
    """What an error says that is no reply."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
        return Fault(
            f"has a certificate that is not trusted ({reason or 'verify failed'}): name its"
            " authority in the URL's options, ssl_ca_certs=/path/ca.pem.",
            lasts=True,
        )
    if "CERTIFICATE_REQUIRED" in text or "HANDSHAKE_FAILURE" in text:
        return Fault(
            "wants a certificate of the client: add ssl_certfile=/path/cert.pem and"
            " ssl_keyfile=/path/key.pem to the URL.",
            lasts=True,
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return Fault(NO_TLS, lasts=True)
    if is_tls and ("No such file" in text or "[SSL]" in text or "PEM lib" in text):
        return Fault(
            "cannot be reached with TLS: a file of ssl_ca_certs, ssl_certfile or ssl_keyfile in"
            f" the URL cannot be read ({text}).",
            lasts=True,
        )
    if isinstance(error, (TimeoutError, redis_errors.TimeoutError)):
        return Fault("did not answer in time.")
    return Fault(f"cannot be reached: {text.rstrip('.')}.")
