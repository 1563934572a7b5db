"""Nouns of events: whose limits are watched, what happened, and the webhooks that receive it.

`billing.alerts` makes events, `access` reads webhooks from `access.yaml`, and `webhooks` sends
events to them. The events are described in `docs/reference/webhooks.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from gateway.images import LimitSubject

EventKind: TypeAlias = Literal[
    "limit_crossed",
    "limit_exhausted",
    "projected_over",
    "spike",
    "revoked_key_in_use",
    "model_retires",
    "weekly_digest",
    "asked_for_more",
]

EVENT_KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)

WebhookFormat: TypeAlias = Literal["slack", "generic"]


class Watched(NamedTuple):
    """A limit subject, and the team of a key."""

    subject: LimitSubject
    team: str | None

    @property
    def scope(self) -> str:
        """`key:NAME`, `team:NAME` or `everyone`."""
        return self.subject.scope


class RevokedUse(NamedTuple):
    """A revoked key that a client still sends."""

    watched: Watched
    revoked_at: float
    requests: int
    address: str
    """Of the last client; empty if it has none."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for people. It is sent once, however many workers notice it."""

    kind: EventKind
    once: str
    """Its name: of events with the same name only the first is sent."""
    until: float
    """Unix seconds until which the name is kept: the end of its window."""
    time: float
    """Unix seconds."""
    text: str
    """For a chat: plain text in one or more lines."""
    data: Mapping[str, Any]
    """For programs: a JSON object."""
    team: str | None = None
    """The team that it is about, if it is about one team or one of its keys."""
    repeats: bool = False
    """It may be sent again after `until`, under the same name."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of events, as `access.yaml` declares it."""

    url: str = field(repr=False)
    """May contain a secret, as those of Slack do."""
    format: WebhookFormat = "generic"
    secret: str | None = field(default=None, repr=False)
    """Signs every request, if set: `whsec_` and base64."""
    events: frozenset[str] | None = None
    """The kinds of events that it gets; None: all."""
    teams: frozenset[str] | None = None
    """The teams whose events it gets; None: all events, also those about no team."""
