"""Faults: what can be asked to go wrong, and which of it a call plays.

A fault is written `name`, `name=value`, or either with `;option=value`: `status=500`,
`429;retry-after=1`, `slow=5`, `moderation;stage=output`. A bare number is a status. Every fault
takes `times=N`: only the first N calls with this prompt play it. How a fault is played on the
wire is `server` and `answer`.

`url=…` takes a whole URL, as it is: `url=http://169.254.169.254/`. One that holds a bracket, a
comma or a semicolon, which mean something here, is percent-encoded as a whole, and then decoded
once: `url=http%3A%2F%2F%5B%3A%3A1%5D%2F`.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from gateway.simulator.refusals import (
    Refusal,
    by_status,
    content_policy,
    generation_failed,
    moderation_blocked,
    quota_used_up,
    refuse,
)


class BadFault(ValueError):
    """Not a fault that can be played; the message lists those that can."""


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A row of the fault table."""

    does: str
    options: frozenset[str] = frozenset()
    value: str = ""
    """A pattern for what follows `name=`; empty: nothing may follow."""
    needs_value: bool = False


FAULTS: Final[Mapping[str, FaultRule]] = {
    "none": FaultRule("nothing; a place holder in a list"),
    "status": FaultRule(
        "the API's own error of this status; 502, 504 and 52x as the edge's HTML",
        frozenset({"retry-after", "retry-after-ms", "code"}),
        value=r"[45][0-9]{2}",
        needs_value=True,
    ),
    "moderation": FaultRule(
        "400 moderation_blocked; stage is input; a stream tells stage=output in an event",
        frozenset({"stage"}),
    ),
    "content-policy": FaultRule("400 content_policy_violation"),
    "stream-error": FaultRule(
        "500 image_generation_failed; in a stream an event after the first partial image"
    ),
    "slow": FaultRule("so many seconds more, never scaled", value=r"[0-9]+(\.[0-9]+)?"),
    "hang": FaultRule(
        "no answer at all while the caller waits; of a stream nothing after the first partial image"
    ),
    "reset": FaultRule(
        "the connection is reset; after=half resets in the middle of the body or of a stream's end",
        frozenset({"after"}),
    ),
    "truncate": FaultRule(
        "the body ends half-way to its Content-Length; a stream in the middle of its end"
    ),
    "malformed-json": FaultRule("200 with half of the JSON, or a stream whose last event has half"),
    "html": FaultRule("200 with a page of HTML"),
    "bad-base64": FaultRule("pictures in wrong base64"),
    "tiny-png": FaultRule("pictures of five bytes"),
    "one-bad": FaultRule("one damaged picture, the others good"),
    "fewer": FaultRule("one picture fewer than asked for"),
    "same-bytes": FaultRule("the same pictures as the last time"),
    "no-usage": FaultRule("no usage"),
    "expired-url": FaultRule("links whose time is over"),
    "link-seconds": FaultRule(
        "links that live so many seconds", value=r"[0-9]+(\.[0-9]+)?", needs_value=True
    ),
    "url": FaultRule(
        "exactly this link, to wherever it leads; whole or percent-encoded as a whole",
        value=r"\S+",
        needs_value=True,
    ),
    "no-stream": FaultRule("a plain answer where a stream was asked for"),
    "stream-no-completed": FaultRule("a stream that ends well, but without its picture"),
    "fewer-partials": FaultRule("one partial image fewer than asked for"),
    "slow-stream": FaultRule(
        "so many seconds more between the events of a stream",
        value=r"[0-9]+(\.[0-9]+)?",
        needs_value=True,
    ),
    "split": FaultRule(
        "a stream in chunks of so many bytes", value=r"[1-9][0-9]*", needs_value=True
    ),
}
"""Every fault by name."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as it was asked for."""

    text: str
    name: str
    value: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def times(self) -> int | None:
        """How many calls with one prompt play it; None for all."""
        times = self.options.get("times")
        return None if times is None else int(times)


def parse_fault(text: str) -> Fault:
    """Reads one fault. Raises `BadFault`."""
    head, *options = (part.strip() for part in text.split(";"))
    name, equals, value = head.partition("=")
    if name.isdecimal() and not equals:
        name, equals, value = "status", "=", name
    fault = Fault(text.strip(), name, value if equals else None, dict(map(_option, options)))
    _check_fault(fault)
    return fault


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def _check_fault(fault: Fault) -> None:
    rule = FAULTS.get(fault.name)
    if rule is None:
        raise BadFault(f"Unknown fault '{fault.text}'. Known faults: {', '.join(FAULTS)}.")
    if fault.value is None and rule.needs_value:
        raise BadFault(f"The fault '{fault.name}' needs a value.")
    if fault.value is not None and not re.fullmatch(rule.value, fault.value):
        raise BadFault(f"The fault '{fault.name}' cannot take the value '{fault.value}'.")
    unknown = set(fault.options) - rule.options - {"times"}
    if unknown:
        known = ", ".join(sorted({"times", *rule.options}))
        raise BadFault(f"'{fault.name}' has no option '{min(unknown)}'. It has: {known}.")
    for option in ("times", "retry-after", "retry-after-ms"):
        if not fault.options.get(option, "0").isdecimal():
            raise BadFault(f"The option '{option}' of '{fault.name}' is a whole number.")


_IN_PROMPT: Final = re.compile(r"\[\[sim:([^\[\]]*)\]\]")


def faults_in_prompt(prompt: str) -> list[Fault]:
    """What `[[sim:…]]` in a prompt asks for. Raises `BadFault`."""
    return [parse_fault(text) for text in _IN_PROMPT.findall(prompt)]


def without_faults(prompt: str) -> str:
    """The prompt as it is drawn: without its `[[sim:…]]`."""
    return " ".join(_IN_PROMPT.sub(" ", prompt).split())


class FaultPlan:
    """Which faults the next call plays. Of a call's sources the first that has any is played:

    its `X-Sim-Fault` header (several with commas), its prompt, the list of `PUT /_sim/faults`
    (one a call), the settings.
    """

    def __init__(self, always: Iterable[Fault] = ()) -> None:
        self._always = tuple(always)
        self._queue: deque[Fault] = deque()
        self._played: Counter[tuple[str, str]] = Counter()

    def queue(self, faults: Iterable[Fault]) -> None:
        """Replaces the list, one fault for each of the next calls."""
        self._queue = deque(faults)

    def choose(self, prompt: str, header: str | None) -> tuple[Fault, ...]:
        """The faults of one call, counted as played. Raises `BadFault`."""
        asked = [parse_fault(text) for text in header.split(",")] if header else []
        asked = asked or faults_in_prompt(prompt)
        if not asked and self._queue:
            asked = [self._queue.popleft()]
        chosen = asked or self._always
        return tuple(f for f in chosen if f.name != "none" and self._is_due(f, prompt))

    def _is_due(self, fault: Fault, prompt: str) -> bool:
        if fault.times is None:
            return True
        self._played[prompt, fault.text] += 1
        return self._played[prompt, fault.text] <= fault.times


def prevents_stream(fault: Fault) -> bool:
    """Whether a call that asks for a stream is answered as if it had not."""
    is_early_reset = fault.name == "reset" and fault.options.get("after") != "half"
    return fault.name in ("no-stream", "html") or is_early_reset


def is_told_in_stream(fault: Fault) -> bool:
    """Whether a stream tells this error in an event; other errors come in its stead."""
    return fault.name == "stream-error" or fault.options.get("stage") == "output"


def refusal_of(fault: Fault, *, model: str, request_id: str) -> Refusal | None:
    """The error answer that a fault stands for; None when it is of another kind."""
    if fault.name == "status":
        return _status_refusal(fault, model)
    if fault.name == "moderation":
        return moderation_blocked(request_id, stage=fault.options.get("stage", "input"))
    if fault.name == "content-policy":
        return content_policy()
    return generation_failed() if fault.name == "stream-error" else None


def link_of(faults: Iterable[Fault]) -> str | None:
    """The link that is to be given instead of a real one; None for none."""
    for fault in faults:
        if fault.name == "url" and fault.value is not None:
            return fault.value if "://" in fault.value else unquote(fault.value)
    return None


def link_seconds_of(faults: Iterable[Fault]) -> float | None:
    """How long links are to live; None when no fault says so."""
    for fault in faults:
        if fault.name == "expired-url":
            return -1
        if fault.name == "link-seconds" and fault.value is not None:
            return float(fault.value)
    return None


def _status_refusal(fault: Fault, model: str) -> Refusal:
    status, code = int(fault.value or 500), fault.options.get("code")
    if code is None:
        refusal = by_status(status, model=model)
    elif status == 429 and not code.startswith(("rate_limit", "slow_down")):
        refusal = quota_used_up(code)
    else:
        message = f"The simulated upstream was told to answer {status}."
        refusal = refuse(message, status=status, code=code)
    for header in ("retry-after", "retry-after-ms"):
        if header in fault.options:
            refusal.headers[header] = fault.options[header]
    return refusal
