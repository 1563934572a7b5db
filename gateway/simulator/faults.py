"""Faults: the table of them, how they are written, and which of them a call plays.

A fault is written `name`, `name=value`, or either with `;option=value`: `status=500`,
`429;retry-after=1`, `slow=5`, `moderation;stage=output`. A bare number is a status. Every fault
takes `times=N`: only the first N calls with this prompt play it. `server`, `answers`, `streams`
and `sending` play them.

`url=…` takes a whole URL, unescaped: `url=http://169.254.169.254/`. If the URL contains a bracket,
a comma or a semicolon, percent-encode all of it; it is then decoded once:
`url=http%3A%2F%2F%5B%3A%3A1%5D%2F`.
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
    billing_limit,
    by_status,
    content_policy,
    error_in_200,
    generation_failed,
    moderation_blocked,
    quota_used_up,
    redirect,
    refuse,
    unknown_model,
)


class BadFault(ValueError):
    """Text that is no fault; the message says why, or lists the known faults."""


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A row of the fault table."""

    does: str
    options: frozenset[str] = frozenset()
    value: str = ""
    """A pattern for the text after `name=`; empty if the fault takes no value."""
    needs_value: bool = False


FAULTS: Final[Mapping[str, FaultRule]] = {
    "none": FaultRule("nothing; a placeholder in a list"),
    "status": FaultRule(
        "the API's own error of this status; 502, 504 and 52x as the edge's HTML",
        frozenset({"retry-after", "retry-after-ms", "code"}),
        value=r"[45][0-9]{2}",
        needs_value=True,
    ),
    "org-unverified": FaultRule("403: the organization must be verified to use the model"),
    "billing-limit": FaultRule("400 billing_hard_limit_reached"),
    "model-unknown": FaultRule("400: the model does not exist"),
    "error-in-200": FaultRule(
        "200 with the API's error in place of images, also for a stream; code is the error's code",
        frozenset({"code"}),
    ),
    "redirect": FaultRule(
        "a redirect of this status, 308 unless given, to=… is where it leads",
        frozenset({"to"}),
        value=r"30[12378]",
    ),
    "no-image": FaultRule("200 with an empty list of images"),
    "moderation": FaultRule(
        "400 moderation_blocked; stage is input; a stream sends stage=output in an event",
        frozenset({"stage"}),
    ),
    "content-policy": FaultRule("400 content_policy_violation"),
    "stream-error": FaultRule(
        "500 image_generation_failed; in a stream an event after the first partial image"
    ),
    "slow": FaultRule("so many seconds more, never scaled", value=r"[0-9]+(\.[0-9]+)?"),
    "hang": FaultRule(
        "no answer while the client waits; a stream sends nothing after its first partial image"
    ),
    "reset": FaultRule(
        "the connection is reset; after=half resets it half-way through the body or the last event",
        frozenset({"after"}),
    ),
    "truncate": FaultRule(
        "the body ends half-way to its Content-Length; a stream half-way through its last event"
    ),
    "malformed-json": FaultRule("200 with half of the JSON, or a stream whose last event has half"),
    "html": FaultRule("200 with a page of HTML"),
    "bad-base64": FaultRule("images in wrong base64"),
    "tiny-png": FaultRule("images of five bytes"),
    "one-bad": FaultRule("one damaged image, the others good"),
    "gif-no-trailer": FaultRule("a GIF without its trailer"),
    "gif-frames": FaultRule("a GIF of 300 frames"),
    "svg-dtd": FaultRule("an SVG with a DTD"),
    "svg-entity": FaultRule("an SVG with a DTD and entities"),
    "svg-active": FaultRule("an SVG with script, references and foreign content"),
    "svg-depth": FaultRule("an SVG of more than 100 levels"),
    "svg-elements": FaultRule("an SVG of more than 100,000 elements"),
    "svg-tag": FaultRule("an SVG with a tag of more than 64 KiB"),
    "svg-cut": FaultRule("half of an SVG"),
    "fewer": FaultRule("one image fewer than requested"),
    "same-bytes": FaultRule("the same images for the same prompt"),
    "no-usage": FaultRule("no usage"),
    "filtered": FaultRule("200 with every image kept back by a filter; of azure and xai"),
    "expired-url": FaultRule("links that have expired"),
    "link-seconds": FaultRule(
        "links that live so many seconds", value=r"[0-9]+(\.[0-9]+)?", needs_value=True
    ),
    "url": FaultRule(
        "exactly this link; as it is or percent-encoded as a whole",
        value=r"\S+",
        needs_value=True,
    ),
    "no-stream": FaultRule("a plain answer to a request for a stream"),
    "stream-no-completed": FaultRule("a stream that ends properly, but without its image"),
    "fewer-partials": FaultRule("one partial image fewer than requested"),
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
    """A fault as it was requested."""

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
    """The faults that `[[sim:…]]` in a prompt requests. Raises `BadFault`."""
    return [parse_fault(text) for text in _IN_PROMPT.findall(prompt)]


def without_faults(prompt: str) -> str:
    """The prompt as it is drawn: without its `[[sim:…]]`."""
    return " ".join(_IN_PROMPT.sub(" ", prompt).split())


class FaultPlan:
    """Chooses the faults of each call.

    A call plays the faults of the first source that has any: its `X-Sim-Fault` header (several with
    commas), its prompt, the list of `PUT /_sim/faults` (one a call), its account, the settings.
    """

    def __init__(self, always: Iterable[Fault] = ()) -> None:
        self._always = tuple(always)
        self._queue: deque[Fault] = deque()
        self._played: Counter[tuple[str, str]] = Counter()

    def queue(self, faults: Iterable[Fault]) -> None:
        """Replaces the list, one fault for each of the next calls."""
        self._queue = deque(faults)

    def choose(
        self, prompt: str, header: str | None, *, of_account: Iterable[Fault] = ()
    ) -> tuple[Fault, ...]:
        """The faults of one call, counted as played. Raises `BadFault`."""
        requested = [parse_fault(text) for text in header.split(",")] if header else []
        requested = requested or faults_in_prompt(prompt)
        if not requested and self._queue:
            requested = [self._queue.popleft()]
        chosen = requested or tuple(of_account) or self._always
        return tuple(f for f in chosen if f.name != "none" and self._is_due(f, prompt))

    def _is_due(self, fault: Fault, prompt: str) -> bool:
        if fault.times is None:
            return True
        self._played[prompt, fault.text] += 1
        return self._played[prompt, fault.text] <= fault.times


def prevents_stream(fault: Fault) -> bool:
    """Whether a request for a stream is answered like one for a plain answer."""
    is_early_reset = fault.name == "reset" and fault.options.get("after") != "half"
    return fault.name in ("no-stream", "html") or is_early_reset


def is_sent_in_stream(fault: Fault) -> bool:
    """Whether a stream sends this error in an event; other errors replace the stream."""
    return fault.name == "stream-error" or fault.options.get("stage") == "output"


def refusal_of(fault: Fault, *, model: str, request_id: str) -> Refusal | None:
    """The error answer of a fault; None for a fault that is no error answer."""
    if fault.name == "status":
        return _status_refusal(fault, model)
    if fault.name == "moderation":
        return moderation_blocked(request_id, stage=fault.options.get("stage", "input"))
    if fault.name == "content-policy":
        return content_policy()
    if fault.name == "org-unverified":
        return by_status(403, model=model)
    if fault.name == "billing-limit":
        return billing_limit()
    if fault.name == "model-unknown":
        return unknown_model(model)
    if fault.name == "error-in-200":
        return error_in_200(fault.options.get("code", "server_error"))
    if fault.name == "redirect":
        target = fault.options.get("to", "https://images.example/v1/images/generations")
        return redirect(int(fault.value or 308), target)
    return generation_failed() if fault.name == "stream-error" else None


def link_of(faults: Iterable[Fault]) -> str | None:
    """The link that a fault puts in the place of the real one; None for none."""
    for fault in faults:
        if fault.name == "url" and fault.value is not None:
            return fault.value if "://" in fault.value else unquote(fault.value)
    return None


def link_seconds_of(faults: Iterable[Fault]) -> float | None:
    """The lifetime that a fault gives to links; None for the usual one."""
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
