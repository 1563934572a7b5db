"""A turnstile: lets so many pass in one turn of the event loop, and the rest in the next ones.

What is a millisecond's work for one is a standstill when a hundred do it in the same turn. Between
turns the loop looks after everybody else.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """Passed by everybody in the order in which they came, `most` in a turn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._passed = 0
        self._line: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Returns at once, or when those who came before have passed."""
        if not self._passed:
            asyncio.get_running_loop().call_soon(self._turn)
        if self._passed < self._most:
            self._passed += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        await turn

    def _turn(self) -> None:
        """The next turn: whoever stands in line goes before who comes now."""
        self._passed = 0
        while self._line and self._passed < self._most:
            waiting = self._line.popleft()
            if not waiting.done():  # not cancelled meanwhile
                waiting.set_result(None)
                self._passed += 1
        if self._passed:
            asyncio.get_running_loop().call_soon(self._turn)
