"""Whether upstream would sell images to this gateway, and what to change if not.

The request is `upstream.check_request`. If the base URL is wrong, the likely ones get
it too, so that the finding can name one that works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from yarl import URL

from gateway.catalog import Catalog
from gateway.configuration.settings import Settings, UpstreamSettings
from gateway.failure_report import Reason
from gateway.process.findings import Finding
from gateway.purchasing.upstream_health import UpstreamState
from gateway.room_settings import client_settings, dialect_of
from gateway.upstream import openai
from gateway.upstream.check_request import CheckReply
from gateway.upstream.client import UpstreamClient, open_client

_OPERATIONS: Final = ("/images/generations", "/images/edits", "/images/variations", "/images")


async def check_upstreams(settings: Settings, catalog: Catalog | None = None) -> Sequence[Finding]:
    """What `check_upstream` finds of each account."""
    found = []
    for number, account in enumerate(settings.accounts):
        finding = await check_upstream(settings, catalog, number=number)
        found.append(_of_entry(finding, account.name) if settings.upstreams else finding)
    return found


def _of_entry(finding: Finding, name: str) -> Finding:
    """A finding whose message names the keys of an entry of `upstreams`."""
    message = finding.message
    for setting, key in (
        ("UPSTREAM_BASE_URL", "its base_url"),
        ("UPSTREAM_API_KEY", "its api_key"),
        ("upstream.", "its "),
    ):
        message = message.replace(setting, key)
    return Finding(finding.name, finding.level, f"{name}: {message}")


async def check_upstream(
    settings: Settings, catalog: Catalog | None = None, *, number: int = 0
) -> Finding:
    """Whether an account refuses a request that buys nothing, as an images API does.

    Without a catalog, which has the dialects, it is called as OpenAI is.
    """
    account = settings.accounts[number]
    if account.api_key is None:
        message = "UPSTREAM_API_KEY is not set; without it `gateway serve` does not start."
        return Finding("upstream", "fault", message)
    base_url = account.base_url
    dialect = openai if catalog is None else dialect_of(account, lambda: catalog)
    async with open_client(client_settings(settings)[number], dialect=dialect) as client:
        reply = await client.check(base_url)
        if reply.is_of_another_service:
            better = await _find_base_url(client, base_url, reply)
            return judge_address(reply, base_url=base_url, better=better)
    return judge_upstream(reply, base_url=base_url, proxy=_proxy_of(account))


async def _find_base_url(client: UpstreamClient, base_url: str, reply: CheckReply) -> str | None:
    """A base URL at which the images API answers; None if no likely one does."""
    for candidate in _likely_base_urls(base_url, reply):
        tried = await client.check(candidate)
        refuses_key = tried.is_api and tried.status in (401, 403, 429)
        if tried.is_refused or refuses_key:
            return candidate
    return None


def _likely_base_urls(base_url: str, reply: CheckReply) -> Iterator[str]:
    """What operators mean, the likeliest first. The key is sent to the same service only."""
    given = URL(base_url)
    found = [given]
    target = _redirect_target(given, reply)
    if target is not None and _is_same_service(given, target):
        found.insert(0, target.with_query(given.query))
    if given.scheme == "http" and reply.status == HTTPStatus.BAD_REQUEST:
        found.insert(0, given.with_scheme("https"))  # nginx: plain HTTP on a port of HTTPS
    seen = {str(given).rstrip("/")}
    for base in found:
        path = _without_operation(base.path)
        for shorter in (path, _without_version(path) + "/v1", _without_version(path), "/v1"):
            candidate = str(base.with_path(shorter or "/", keep_query=True)).rstrip("/")
            if candidate not in seen:
                seen.add(candidate)
                yield candidate


def _without_operation(path: str) -> str:
    path = path.rstrip("/")
    for operation in _OPERATIONS:
        path = path.removesuffix(operation).rstrip("/")
    return path


def _without_version(path: str) -> str:
    while path.endswith("/v1"):
        path = path.removesuffix("/v1").rstrip("/")
    return path


def _redirect_target(base: URL, reply: CheckReply) -> URL | None:
    if reply.report.reason is not Reason.REDIRECTED:
        return None
    try:
        target = base.join(URL(reply.headers.get("Location", ""))).with_user(None)
    except ValueError:
        return None
    return target if target.scheme in ("http", "https") else None


def _is_same_service(given: URL, target: URL) -> bool:
    """Whether the key may be sent to the target of a redirect: to the same origin, or from plain
    HTTP to TLS on the default ports.

    Another port may be another service. Plain HTTP would show the key to the network.
    """
    is_upgrade = given.scheme == "http" and target.scheme == "https"
    is_default = given.is_default_port() and target.is_default_port()
    is_moved = is_upgrade and is_default and given.host == target.host
    return is_moved or _origin(given) == _origin(target)


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    """Unlike `URL.origin`, equal with and without a default port."""
    return url.scheme, url.host, url.port


def judge_address(reply: CheckReply, *, base_url: str, better: str | None) -> Finding:
    """The finding if the base URL leads to something that is no images API."""
    found = f"{base_url} {_answers(reply)}"
    if better is not None:
        message = f"{found}: set UPSTREAM_BASE_URL to {better}, where the images API answers."
        return Finding("upstream", "fault", message)
    target = _redirect_target(URL(base_url), reply)
    if target is not None and target.host is not None:
        there = str(target.with_path(_without_operation(target.path)).with_query(None))
        is_same = _is_same_service(URL(base_url), target)
        trust = "which was tried and did not answer" if is_same else "if you trust it"
        message = (
            f"{found}, which is never followed: set UPSTREAM_BASE_URL to {there}, {trust}, or to "
            "the service's own base URL."
        )
        return Finding("upstream", "fault", message)
    message = (
        f"{found}: check UPSTREAM_BASE_URL. It is the part before /images/generations, mostly "
        "https://HOST/v1."
    )
    return Finding("upstream", "fault", message)


def _answers(reply: CheckReply) -> str:
    if reply.report.reason is Reason.REDIRECTED:
        return f"responds with a redirect ({reply.status})"
    if "text/html" in reply.headers.get("Content-Type", ""):
        return f"responds with {reply.status} and a web page"
    return f"responds with {reply.status}, and not as an images API"


def judge_upstream(reply: CheckReply, *, base_url: str, proxy: str | None = None) -> Finding:
    """The finding for any answer of an images API, or for none."""
    report, status = reply.report, reply.status
    said = f": “{report.message}”" if report.message else ""
    if reply.is_refused:
        message = f"{base_url} is an images API: it refused a request that buys nothing"
        return Finding("upstream", "ok", message)
    if status is None or report.reason is Reason.PROXY_FAILED:
        return Finding("upstream", "fault", _explain_silence(reply, base_url, proxy=proxy))
    if status == HTTPStatus.UNAUTHORIZED or report.reason is Reason.CREDENTIAL_REFUSED:
        message = (
            f"{base_url} refuses the key with {status}: check UPSTREAM_API_KEY, and "
            f"upstream.auth_header if the service does not take a Bearer token{said}"
        )
        return Finding("upstream", "fault", message)
    if report.reason is Reason.ACCESS_REFUSED:
        message = (
            f"{base_url} refuses this account with {status}: check the rights of UPSTREAM_API_KEY, "
            f"and the account's verification and region{said}"
        )
        return Finding("upstream", "fault", message)
    if report.reason in (Reason.QUOTA_EXHAUSTED, Reason.RATE_LIMITED):
        message = f"{base_url} responds with {status}: {report.reason.explanation}{said}"
        return Finding("upstream", "warning", message)
    if status < HTTPStatus.MULTIPLE_CHOICES:
        message = (
            f"{base_url} responds with {status} to a request without a prompt: it is no images "
            "API, or one that checks nothing. Check UPSTREAM_BASE_URL."
        )
        return Finding("upstream", "warning", message)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        message = f"{base_url} responds with {status}: it is down, or check UPSTREAM_BASE_URL{said}"
        return Finding("upstream", "warning", message)
    return Finding("upstream", "warning", f"{base_url} responds with {status}{said}")


def _explain_silence(reply: CheckReply, base_url: str, *, proxy: str | None) -> str:
    """Why there was no answer, and what to change."""
    reason = reply.report.reason
    said = f" ({reply.report.message})" if reply.report.message else ""
    if proxy is not None and reason in (Reason.PROXY_FAILED, Reason.TIMEOUT):
        return (
            f"{base_url} does not respond through the proxy {proxy}: check upstream.proxy, or "
            f"empty it if none is needed{said}."
        )
    if reason is Reason.HOST_UNKNOWN:
        host = URL(base_url).host
        return f"{base_url} does not respond: {host} has no address. Check UPSTREAM_BASE_URL{said}."
    if reason is Reason.TLS_FAILED:
        return (
            f"{base_url} does not respond with a certificate that is trusted: check "
            f"UPSTREAM_BASE_URL, or name its authority in upstream.ca_file{said}."
        )
    return f"{base_url} does not respond: check UPSTREAM_BASE_URL and the network{said}."


def _proxy_of(account: UpstreamSettings) -> str | None:
    """The proxy without its password."""
    if account.proxy is None:
        return None
    return str(URL(account.proxy.get_secret_value()).with_user(None))


def judge_accounts(settings: Settings) -> Iterator[str]:
    """The faults for which `gateway serve` does not start."""
    for account in settings.accounts:
        fault = None
        if account.api_key is None and not settings.upstreams:
            fault = (
                "UPSTREAM_API_KEY is not set: set it to the team's key, or try `gateway demo`, "
                "which needs none."
            )
        elif account.api_key is None:
            fault = (
                f"gateway.yaml: upstreams: '{account.name}' has no api_key: set it to the team's "
                "key there, or to any word if the service checks none."
            )
        elif (of_url := judge_base_url(account.base_url)) is not None:
            fault = of_url
            if settings.upstreams:
                fault = f"gateway.yaml: upstreams: '{account.name}': " + of_url.replace(
                    "UPSTREAM_BASE_URL", "base_url"
                )
        if fault is not None:
            yield fault


def judge_base_url(base_url: str) -> str | None:
    """What is wrong with a base URL that ends in a path of the API; None if it does not."""
    given = URL(base_url)
    if not given.path.rstrip("/").endswith(_OPERATIONS[:3]):
        return None
    better = given.with_path(_without_operation(given.path) or "/", keep_query=True)
    return (
        f"UPSTREAM_BASE_URL is {base_url}, but the gateway appends /images/generations itself: set "
        f"it to {str(better).rstrip('/')}."
    )


# ── the last failures ───────────────────────────────────────────────────────────────────────


def judge_failures(states: Sequence[UpstreamState], *, now: float) -> Sequence[Finding]:
    """How the last purchases ended; nothing for an upstream that never failed."""
    return [_judge_state(state, now=now) for state in states if state.failures]


def _judge_state(state: UpstreamState, *, now: float) -> Finding:
    last = state.cause or state.failures[0]  # not a request that was at fault itself
    words = [str(word) for word in (last.reason, last.status, last.code) if word is not None]
    said = f": “{last.message}”" if last.message else ""
    # A sentence that is over before what upstream said, which may be cut anywhere.
    about = (
        f"{' '.join(words)}, model {last.model}, request {last.request_id}, upstream's request "
        f"{last.upstream_request_id or 'unknown'}{said}"
    )
    success = "never" if state.last_success_at is None else _ago(now - state.last_success_at)
    if not state.failures_since_success:
        since = _ago(now - last.time)
        message = f"{state.name}: purchases succeed. The last failure was {since}: {about}"
        return Finding("last failure", "ok", message)
    breakers = len(state.open_breakers)
    is_open = f" The circuit breaker of {breakers} worker(s) is open." if breakers else ""
    message = (
        f"{state.name}: {state.failures_since_success} purchase(s) failed since the last success "
        f"({success}), the last one at {_time(last.time)}. {last.explanation}{is_open} "
        f"It was {about}"
    )
    return Finding("last failure", "warning", message)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
