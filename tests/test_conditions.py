"""States that last: what is logged when they begin, while they last, and when they end."""

from __future__ import annotations

from typing import Any

from structlog import get_logger
from structlog.testing import capture_logs

from gateway.conditions import FLAP_SECONDS, MAX_DETAILS, REMIND_SECONDS, Condition
from gateway.errors import StoreUnavailable
from gateway.maintenance import Job, run_jobs
from tests.waiting import eventually


class At:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def outage(clock: At) -> Condition:
    return Condition(
        get_logger(),
        "store_unavailable",
        "store_available",
        counted="failed_calls",
        fields={"store": "books"},
        clock=clock,
    )


def without_level(logs: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("log_level", "pid")} for line in logs]


def test_it_is_logged_when_it_begins_and_when_it_ends() -> None:
    clock = At()
    condition = outage(clock)
    with capture_logs() as logs:
        for _ in range(30):
            condition.occurs("refused", reason="refused")
            clock.now += 0.3
        condition.ends()
        condition.ends()
    assert without_level(logs) == [
        {"event": "store_unavailable", "store": "books", "reason": "refused"},
        {
            "event": "store_available",
            "store": "books",
            "failed_calls": 30,
            "lasted_seconds": 9.0,
        },
    ]
    assert [line["log_level"] for line in logs] == ["warning", "info"]


def test_a_reminder_comes_once_a_minute() -> None:
    clock = At()
    condition = outage(clock)
    with capture_logs() as logs:
        for _ in range(3 * 480 + 1):
            condition.occurs("refused")
            clock.now += REMIND_SECONDS / 480
    assert [line.get("failed_calls") for line in logs] == [None, 481, 961, 1441]


def test_another_reason_is_logged_at_once_and_a_few_at_most() -> None:
    clock = At()
    condition = outage(clock)
    with capture_logs() as logs:
        for number in range(100):
            condition.occurs(f"port {number}", reason=f"port {number}")
            condition.occurs("port 0", reason="port 0")
    assert len(logs) == MAX_DETAILS


def test_a_state_that_flaps_is_logged_once_in_a_while() -> None:
    clock = At()
    condition = outage(clock)
    with capture_logs() as logs:
        for _ in range(600):
            condition.occurs("slow")
            clock.now += 0.05
            condition.ends()
            clock.now += 0.05
    assert len(logs) <= 2 * (1 + 60 / FLAP_SECONDS)
    assert sum(line["failed_calls"] for line in logs if line["event"] == "store_available") > 400


def test_one_that_begins_again_soon_is_logged_if_it_stays() -> None:
    clock = At()
    condition = outage(clock)
    condition.occurs()
    condition.ends()
    with capture_logs() as logs:
        while clock.now < 1000 + 2 * FLAP_SECONDS:
            condition.occurs()
            clock.now += 1
    assert [line["event"] for line in logs] == ["store_unavailable"]


def test_one_that_began_again_soon_and_lasted_is_logged_at_its_end() -> None:
    """Such as a circuit breaker that opens again and meets no further purchase for an hour."""
    clock = At()
    condition = outage(clock)
    condition.occurs()
    condition.ends()
    clock.now += 1
    condition.occurs()
    clock.now += 3600
    with capture_logs() as logs:
        condition.ends()
    (line,) = without_level(logs)
    assert (line["event"], line["lasted_seconds"]) == ("store_available", 3600.0)


def test_it_ends_by_itself_if_it_has_not_shown_for_a_while() -> None:
    clock = At()
    condition = outage(clock)
    condition.occurs()
    clock.now += 9
    condition.ends_if_quiet(10)
    assert condition.lasts
    clock.now += 1
    condition.ends_if_quiet(10)
    assert not condition.lasts


async def test_a_job_that_fails_again_and_again_is_logged_once_with_its_traceback() -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps < 20:
            raise ZeroDivisionError("of this job")

    with capture_logs() as logs:
        async with run_jobs((Job("sums", 0.0, step),)):
            await eventually(lambda: steps > 20)
    failed, works = logs
    assert (failed["event"], failed["job"], failed["log_level"]) == ("job_failed", "sums", "error")
    assert isinstance(failed["exc_info"], ZeroDivisionError)
    assert (works["event"], works["occurrences"]) == ("job_works", 19)


async def test_a_job_without_its_store_leaves_the_log_to_the_store() -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        raise StoreUnavailable

    with capture_logs() as logs:
        async with run_jobs((Job("heartbeat", 0.0, step),)):
            await eventually(lambda: steps > 20)
    assert logs == []
