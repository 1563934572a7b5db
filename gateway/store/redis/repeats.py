"""Replies of scripts that did nothing and must be sent again: with other days, or further keys.

A script replies `CALENDAR <now>` if its clock is in neither of the days that it was sent, and
`KEYS <now> <number> <names>` if it needs keys that were not declared. `now` is the server's time in
microseconds, and names are percent-encoded.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from redis.exceptions import ResponseError

from gateway.store.redis.commands.encoding import RedisCommand
from gateway.store.redis.plans import Planned

MAX_TOPICS: Final = 4096
MAX_LEARNED: Final = 512
"""Keys of a topic; the oldest ones are dropped first."""

MAX_OF_QUEUE: Final = 64
"""Keys of a queue. Every reservation at a limited account declares them. A script reads the tickets
of at most 50 keys."""

_ANSWER: Final = re.compile(r"(?:ERR )?(?:CALENDAR|KEYS) (\d+)(?: (\d+) (.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Repeat:
    """How to send a script again."""

    now: float
    """The server's Unix seconds."""
    keys: Sequence[str] = ()
    """The keys to declare as well."""


def read_repeat(reply: object) -> Repeat | None:
    """None for the reply to a command that was executed, or refused for another reason."""
    if not isinstance(reply, ResponseError) or not (answer := _ANSWER.match(str(reply))):
        return None
    now, count, names = answer.groups()
    # Redis appends where in the script the error was raised.
    keys = names.split(" ")[: int(count)] if count else ()
    return Repeat(int(now) / 1e6, tuple(unquote(key) for key in keys))


class LearnedKeys:
    """The keys of a worker's purchases and of the queues where they wait.

    A settlement needs the keys of its reservation, and a call for turns those of the call before. A
    script asks for missing keys, so this class only saves round trips.
    """

    def __init__(self) -> None:
        self._topics: OrderedDict[str, tuple[str, ...] | dict[str, None]] = OrderedDict()
        self.planned: OrderedDict[str, Planned] = OrderedDict()
        """By purchase."""

    def declare(self, command: RedisCommand) -> RedisCommand:
        """The command with the keys that are known; remembers its own."""
        if not command.recalls and not command.teaches:
            return command
        known: list[str] = []
        for topic in command.recalls:
            known += self._topics.get(topic, ())
        if known and command.offers and command.recalls[0] in self._topics:
            # For those after it in the batch.
            self.remember(command.recalls[0], command.offers)
        if command.teaches:
            self._teach(command)
        return command.with_keys(known) if known else command

    def _teach(self, command: RedisCommand) -> None:
        self.remember(command.teaches, command.keys)
        purchase = command.teaches.removeprefix("purchase ")
        if command.planned is None:
            self.planned.pop(purchase, None)
            return
        self.planned[purchase] = command.planned
        while len(self.planned) > MAX_TOPICS:
            self.planned.popitem(last=False)

    def remember(self, topic: str, keys: Sequence[str]) -> None:
        """Adds to the keys of a topic."""
        known = self._topics.get(topic)
        if known is None and len(keys) <= MAX_OF_QUEUE:
            # As for each purchase, to whose keys nothing is added: no table is built.
            self._topics[topic] = tuple(keys)
        else:
            if not isinstance(known, dict):
                known = self._topics[topic] = dict.fromkeys(known or ())
            self._topics.move_to_end(topic)
            for key in keys:
                known.pop(key, None)  # to the end
                known[key] = None
            most = MAX_OF_QUEUE if topic.startswith("queue ") else MAX_LEARNED
            while len(known) > most:
                del known[next(iter(known))]
        while len(self._topics) > MAX_TOPICS:
            self._topics.popitem(last=False)
