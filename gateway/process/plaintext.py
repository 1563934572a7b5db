"""Warnings about secrets and images that travel without TLS over a network of others.

Pure: names are judged as they are written, and not resolved. A warning names the setting, what is
plain, and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from gateway.configuration.fields import Address
from gateway.configuration.settings import Settings
from gateway.net.guard import Address as IpAddress
from gateway.net.guard import (
    LinkBlocked,
    Network,
    embedded_ipv4,
    parse_allow_list,
    parse_host,
)
from gateway.process.findings import Finding
from gateway.store.blobs.bucket_url import find_endpoint, is_bucket, parse_bucket_url
from gateway.store.redis.urls import is_multi_host_url

_PRIVATE_NAMES: Final = (
    *("localhost", "local", "internal", "intranet", "private", "lan", "home", "corp"),
    *("home.arpa", "svc"),
)
"""Names that public DNS does not have (RFC 6762, 8375; ICANN for .internal), and Kubernetes'."""

_PRIVATE_NETWORKS: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this machine
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by carriers, and by overlay networks
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "::/128",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)

Found = Iterator[tuple[str, str]]
"""Settings, and what is plain because of them."""

Check = Callable[[Settings], Found]


def judge_plaintext(settings: Settings) -> Sequence[Finding]:
    """A warning for each setting with which something travels in plain text; "ok" if none does."""
    checks: Sequence[Check] = (_listeners, _public_url, _upstream, _stores, _rehost, _tracing)
    warnings = [
        Finding(name, "warning", message) for check in checks for name, message in check(settings)
    ]
    return warnings or [Finding("plain text", "ok", "nothing travels in plain text in public")]


def _listeners(settings: Settings) -> Found:
    server = settings.server
    # Behind a trusted proxy, that proxy speaks TLS with the clients.
    if server.tls.cert is not None or server.trusted_proxies:
        return
    remedy = (
        "set server.tls, or put a TLS proxy in front and name its address in "
        "GATEWAY_TRUSTED_PROXIES."
    )
    contents = "Keys and images" if server.admin_listen else "Keys, admin token and images"
    if not is_loopback(server.listen):
        yield "server.listen", f"{contents} travel in plain text on {server.listen}: {remedy}"
    if server.admin_listen is not None and not is_loopback(server.admin_listen):
        message = f"The admin token travels in plain text on {server.admin_listen}: {remedy}"
        yield "server.admin_listen", message


def _public_url(settings: Settings) -> Found:
    url, server = settings.server.public_url, settings.server
    if url is None or not url.startswith("http:"):
        return
    if server.tls.cert is not None:
        message = (
            f"Links start with {url}, but the gateway speaks TLS: set GATEWAY_PUBLIC_URL to an "
            "https:// URL."
        )
        yield "server.public_url", message
    elif is_public_host(urlsplit(url).hostname or ""):
        message = (
            f"Links start with {url}, so images and the signatures that open them travel in plain "
            "text: set GATEWAY_PUBLIC_URL to an https:// URL."
        )
        yield "server.public_url", message


def _upstream(settings: Settings) -> Found:
    for number, upstream in enumerate(settings.accounts):
        section = f"upstreams.{number}" if settings.upstreams else "upstream"
        url = urlsplit(upstream.base_url)
        if url.scheme == "http" and is_public_host(url.hostname or ""):
            fix = "give it" if settings.upstreams else "set UPSTREAM_BASE_URL to"
            message = (
                f"Upstream's key, prompts and images travel in plain text to {upstream.base_url}: "
                f"{fix} an https:// URL."
            )
            yield f"{section}.base_url", message
        proxy = _parts(upstream.proxy)
        if proxy is not None and proxy.password and is_public_host(proxy.hostname or ""):
            message = (
                f"The password of the proxy {proxy.hostname} travels to it in plain text: use a "
                "proxy in a private network, or allow the gateway's address there instead of a "
                "password."
            )
            yield f"{section}.proxy", message


def _stores(settings: Settings) -> Found:
    given = {
        ("store.redis_url", "GATEWAY_REDIS_URL", "Key hashes, ledger and images"): (
            settings.store.redis_url
        ),
        ("store.blobs_url", "GATEWAY_BLOBS_URL", "Images"): settings.store.blobs_url,
    }
    for (name, variable, contents), secret in given.items():
        endpoint = urlsplit(_endpoint(secret))
        if endpoint.scheme == "http" and is_public_host(endpoint.hostname or ""):
            message = (
                f"{contents} travel in plain text to the bucket at {endpoint.hostname}: give "
                f"{variable}, or the environment, an https:// endpoint."
            )
            yield name, message
        yield from ((name, text) for text in _plain_redis(secret, contents, variable))


def _plain_redis(secret: SecretStr | None, contents: str, variable: str) -> Iterator[str]:
    text = secret.get_secret_value() if secret is not None else ""
    if is_multi_host_url(text):
        # Imported here, because importing redis-py takes longer than most commands on an embedded
        # store.
        from gateway.store.redis.topology.multi_host_url import (  # noqa: PLC0415
            parse_multi_host_url,
        )

        parts = parse_multi_host_url(text)
        hosts = [] if parts.is_tls else [address.host for address in parts.hosts]
        has_password, fix = bool(parts.userinfo), f"add the option ssl=true to {variable}"
    else:
        url = urlsplit(text)
        hosts = [url.hostname or ""] if url.scheme == "redis" else []
        has_password, fix = bool(url.password), f"set {variable} to a rediss:// URL"
    if public := [host for host in hosts if is_public_host(host)]:
        also = ", and its password," if has_password else ""
        yield (f"{contents}{also} travel in plain text to the Redis at {', '.join(public)}: {fix}.")


def _endpoint(secret: SecretStr | None) -> str:
    """Where a bucket is reached, if it is a bucket and the endpoint is given."""
    url = secret.get_secret_value() if secret is not None else ""
    if not is_bucket(url):
        return ""
    try:
        return find_endpoint(parse_bucket_url(url)) or ""
    except ValueError:  # a start, and the check of the bucket, name it
        return ""


def _rehost(settings: Settings) -> Found:
    public = [entry for entry in settings.rehost.allow if _is_public_entry(entry)]
    if public:
        message = (
            f"Images may be fetched over plain http from {', '.join(public)}, where others can "
            "read and replace them: name only private hosts in GATEWAY_REHOST_ALLOW."
        )
        yield "rehost.allow", message


def _tracing(settings: Settings) -> Found:
    url = urlsplit(settings.tracing.endpoint or "")
    if url.scheme == "http" and is_public_host(url.hostname or ""):
        message = (
            "The addresses of clients and the collector's headers travel in plain text to "
            f"{url.hostname}: set OTEL_EXPORTER_OTLP_ENDPOINT to an https:// URL."
        )
        yield "tracing.endpoint", message


# ── hosts ───────────────────────────────────────────────────────────────────────────────────


def is_loopback(address: Address) -> bool:
    """Whether only this machine reaches the address."""
    if address.host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return False


def is_public_host(name: str) -> bool:
    """Whether a host, without brackets, may be in a network of others, or be reached through one.

    That is any address or name that is not known to be private.
    """
    name = name.rstrip(".")
    try:
        host = parse_host(f"[{name}]" if ":" in name else name, default_port=80)
    except LinkBlocked:
        # Names with an underscore are common in Docker. Numbers, such as 127.1, may be anything.
        return "." in name or name.isdecimal()
    if host.address is not None:
        return not _is_private_address(host.address)
    labels = host.name.split(".")
    is_private = any(f".{host.name}".endswith(f".{private}") for private in _PRIVATE_NAMES)
    # Names of one label are those of Docker, Kubernetes and /etc/hosts. The domain of a Kubernetes
    # may be another than cluster.local.
    return not is_private and len(labels) > 1 and "svc" not in labels


def _is_private_address(address: IpAddress) -> bool:
    addresses = embedded_ipv4(address) or (address,)
    private = (any(a in network for network in _PRIVATE_NETWORKS) for a in addresses)
    return all(private) or any(address in network for network in _PRIVATE_NETWORKS)


def _is_public_entry(entry: str) -> bool:
    """Whether an entry of `rehost.allow` allows anything that is not private."""
    allowed = parse_allow_list([entry])
    are_private = all(map(_is_private_network, allowed.networks))
    return not are_private or any(is_public_host(name) for name, _ in allowed.hosts)


def _is_private_network(network: Network) -> bool:
    return any(
        network.version == private.version and network.subnet_of(private)  # type: ignore[arg-type]
        for private in _PRIVATE_NETWORKS
    )


def _parts(url: SecretStr | None) -> SplitResult | None:
    return None if url is None else urlsplit(url.get_secret_value())
