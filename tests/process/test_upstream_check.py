"""What `gateway doctor` says of upstream: the check request, wrong base URLs, the last failures."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner
from yarl import URL

from gateway.cli.main import cli
from gateway.failure_report import FailureReport, Reason
from gateway.process.findings import Finding
from gateway.process.upstream_check import (
    _likely_base_urls,
    check_upstream,
    judge_base_url,
    judge_failures,
)
from gateway.purchasing.upstream_health import FailedPurchase, UpstreamState
from gateway.upstream.check_request import BODY, CheckReply
from tests.gateways import make_settings, run_upstream
from tests.local_server import serve

KEY = "sk-upstream-secret"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def run_server(answer: Answer) -> AsyncIterator[str]:
    """A server that gives every request to `answer`."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    async with serve(app) as url:
        yield url


def answering(status: int, *, headers: Mapping[str, str] | None = None, **given: Any) -> Answer:
    """A server's answer that is always the same."""

    async def answer(_request: web.Request) -> web.Response:
        if "json" in given:
            return web.json_response(given["json"], status=status)
        kind = given.get("kind", "text/plain")
        return web.Response(
            status=status, text=given.get("text", ""), content_type=kind, headers=headers
        )

    return answer


async def check(folder: Path, base_url: str, **upstream: Any) -> Finding:
    return await check_upstream(make_settings(folder, base_url, upstream=upstream))


# ── the check request ───────────────────────────────────────────────────────────────────────


async def test_the_check_request_is_sent_as_purchases_are_and_buys_nothing(tmp_path: Path) -> None:
    seen: list[web.Request] = []
    bodies: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        bodies.append(await request.read())
        return web.json_response({"error": {"message": "no prompt", "code": None}}, status=400)

    async with run_server(answer) as root:
        headers = {"X-Team": "art-department"}
        finding = await check(tmp_path, f"{root}/v1", auth_header="api-key", headers=headers)

    assert finding.level == "ok", finding
    (request,) = seen
    assert (request.method, request.path_qs) == ("POST", "/v1/images/generations")
    assert request.headers["api-key"] == KEY
    assert request.headers["X-Team"] == "art-department"
    assert request.headers["Accept-Encoding"] == "identity"
    assert bodies == [BODY]


async def test_the_simulated_upstream_refuses_the_check_request(tmp_path: Path) -> None:
    async with run_upstream(api_key=KEY) as upstream:
        findings = [await check(tmp_path, upstream.base_url + slash) for slash in ("", "/")]
        wrong = await check(tmp_path, upstream.base_url, api_key="sk-wrong-one-of-mine")
        (call, *_) = await upstream.calls()
    assert {finding.level for finding in findings} == {"ok"}
    assert call["status"] == 400
    assert wrong.level == "fault"
    assert "UPSTREAM_API_KEY" in wrong.message
    assert "sk-wrong-one-of-mine" not in wrong.message


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (answering(400, json={"error": {"message": "no", "code": "x"}}), "ok", []),
        (answering(422, json={"detail": [{"loc": ["body", "prompt"]}]}), "ok", []),
        (answering(200, json={"error": {"message": "no", "type": "x"}}), "ok", []),
        (
            answering(404, json={"error": {"message": "no such model", "code": "model_not_found"}}),
            "ok",
            [],
        ),
        (answering(401), "fault", ["401", "UPSTREAM_API_KEY"]),
        (
            answering(403, json={"error": {"message": "must be verified"}}),
            "fault",
            ["403", "must be verified"],
        ),
        (answering(404, json={"detail": "Not Found"}), "fault", ["404", "UPSTREAM_BASE_URL"]),
        (answering(405), "fault", ["405", "UPSTREAM_BASE_URL"]),
        (
            answering(200, text="<h1>Welcome</h1>", kind="text/html"),
            "fault",
            ["web page", "UPSTREAM_BASE_URL"],
        ),
        (
            answering(400, text="The plain HTTP request was sent to HTTPS port", kind="text/html"),
            "fault",
            ["400", "UPSTREAM_BASE_URL"],
        ),
        (
            answering(
                308, headers={"Location": "https://elsewhere.example/v1/images/generations?s=1"}
            ),
            "fault",
            ["308", "UPSTREAM_BASE_URL to https://elsewhere.example/v1,"],
        ),
        (answering(407), "fault", ["does not respond", "proxy"]),
        (
            answering(429, json={"error": {"message": "x", "code": "insufficient_quota"}}),
            "warning",
            ["429", "billing"],
        ),
        (answering(503), "warning", ["503"]),
        (
            answering(200, json={"data": [{"b64_json": "aaaa"}]}),
            "warning",
            ["200", "checks nothing"],
        ),
    ],
)
async def test_each_answer_to_the_check_request_is_judged_in_one_line(
    tmp_path: Path, answer: Answer, level: str, words: list[str]
) -> None:
    async with run_server(answer) as root:
        finding = await check(tmp_path, f"{root}/v1", proxy=root if "proxy" in words else None)
    assert finding.level == level, finding
    assert [word for word in words if word not in finding.message] == [], finding.message
    assert "\n" not in finding.message
    assert KEY not in finding.message


# ── base URLs ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1/images/generations",
        "/v1/images/generations/",
        "/images/generations",
        "/v1/images",
        "/v1/v1",
        "/v1/v1/images/generations",
        "/api",
        "/openai",
    ],
)
async def test_a_wrong_base_url_is_answered_with_one_that_works(tmp_path: Path, path: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/v1/images/generations":
            return web.json_response({"error": {"message": "no prompt"}}, status=400)
        return web.Response(status=404, text="<html>nothing here</html>", content_type="text/html")

    async with run_server(answer) as root:
        finding = await check(tmp_path, root + path)
    assert finding.level == "fault"
    assert f"set UPSTREAM_BASE_URL to {root}/v1," in finding.message, finding.message


async def test_a_redirect_of_the_same_service_is_tried_and_one_to_another_is_not(
    tmp_path: Path,
) -> None:
    """Another host, another port and another user are others; all of them would get the key."""
    called: list[str] = []

    async def there(request: web.Request) -> web.Response:
        called.append(request.host)
        return web.json_response({"error": {"message": "no prompt"}}, status=400)

    async def moved(request: web.Request) -> web.Response:
        if request.path == "/v2/images/generations":
            return await there(request)
        return web.Response(status=301, headers={"Location": "/v2/images/generations"})

    async with run_server(there) as target:
        named = target.replace("127.0.0.1", "localhost")
        away = answering(301, headers={"Location": f"{named}/v1/images/generations"})
        user = target.replace("http://", "http://ann:pw@")
        port = answering(301, headers={"Location": f"{user}/v1/images/generations"})
        async with run_server(moved) as root, run_server(away) as a, run_server(port) as b:
            tried = await check(tmp_path, f"{root}/v1")
            untried = [await check(tmp_path, f"{other}/v1") for other in (a, b)]
    assert f"set UPSTREAM_BASE_URL to {root}/v2, where the images API answers" in tried.message
    assert f"set UPSTREAM_BASE_URL to {named}/v1, if you trust it" in untried[0].message
    assert f"set UPSTREAM_BASE_URL to {target}/v1, if you trust it" in untried[1].message
    assert called == [root.removeprefix("http://")]


@pytest.mark.parametrize(
    ("given", "location", "is_same"),
    [
        ("https://a.example/v1", "/v2", True),
        ("https://a.example/v1", "https://A.example:443/v2", True),
        ("http://a.example/v1", "https://a.example/v1", True),
        ("http://a.example:8080/v1", "http://a.example:8080/", True),
        ("https://a.example/v1", "http://a.example/v1", False),
        ("https://a.example/v1", "//a.example:8443/v1", False),
        ("http://a.example:8080/v1", "https://a.example/v1", False),
        ("https://a.example/v1", "https://b.example/v1", False),
    ],
)
def test_the_key_follows_a_redirect_within_its_service_only(
    given: str, location: str, is_same: bool
) -> None:
    report = FailureReport(Reason.REDIRECTED, status=301)
    result = CheckReply(301, report, headers={"Location": location})
    target = URL(given).join(URL(location))
    tried = {(u.scheme, u.host, u.port) for u in map(URL, _likely_base_urls(given, result))}
    assert ((target.scheme, target.host, target.port) in tried) == is_same


@pytest.mark.parametrize(
    ("base_url", "better"),
    [
        ("https://a.example/v1/images/generations", "https://a.example/v1"),
        ("https://a.example/v1/images/generations/", "https://a.example/v1"),
        ("https://a.example/v1/images/edits?x=1", "https://a.example/v1?x=1"),
        ("https://a.example/images/generations", "https://a.example"),
        ("https://a.example/v1", None),
        ("https://a.example/images", None),
        ("https://a.example", None),
    ],
)
def test_a_base_url_with_the_whole_path_is_recognized(base_url: str, better: str | None) -> None:
    fault = judge_base_url(base_url)
    assert (fault is None) == (better is None)
    assert better is None or f"set it to {better}." in (fault or "")


def test_serve_does_not_start_with_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_API_KEY", KEY)
    monkeypatch.setenv("UPSTREAM_BASE_URL", "https://a.example/v1/images/generations")
    result = CliRunner().invoke(cli, ["serve"])
    assert result.exit_code == 1
    assert "set it to https://a.example/v1." in result.output


# ── the last failures ───────────────────────────────────────────────────────────────────────


def failed(**given: Any) -> FailedPurchase:
    return FailedPurchase(
        **{"time": time.time(), "phase": "answer", "reason": "credential_refused"} | given
    )


def test_upstreams_that_fail_are_a_warning_with_what_upstream_said() -> None:
    now = time.time()
    failure = failed(
        status=401,
        code="invalid_api_key",
        message="Incorrect API key.",
        request_id="req_1",
        upstream_request_id="up_1",
        model="gpt-image-2",
    )
    state = UpstreamState("default", now - 7200, 3, (failure,), {"worker": now})
    (finding,) = judge_failures([state], now=now)
    assert finding.level == "warning"
    for word in (
        "3 purchase(s)",
        "2 h ago",
        "401",
        "invalid_api_key",
        "Incorrect API key.",
        "req_1",
    ):
        assert word in finding.message
    for word in ("up_1", "gpt-image-2", "check UPSTREAM_API_KEY", "breaker of 1"):
        assert word in finding.message


def test_upstreams_that_work_again_are_ok_and_those_that_never_failed_are_not_listed() -> None:
    now = time.time()
    again = UpstreamState("again", now, 0, (failed(),))
    (finding,) = judge_failures([again, UpstreamState("never", now)], now=now)
    assert (finding.name, finding.level) == ("last failure", "ok")
    assert finding.message.startswith("again: purchases succeed.")


def test_a_reason_of_a_newer_gateway_is_shown_as_it_is() -> None:
    state = UpstreamState("default", None, 1, (failed(reason="of_the_future"),))
    (finding,) = judge_failures([UpstreamState.decode(state.encode())], now=time.time())
    assert "of_the_future" in finding.message
