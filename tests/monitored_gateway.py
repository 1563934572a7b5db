"""The command line, with workers that watch their event loop: `python -m tests.monitored_gateway`.

`GET /loop` has the longest times for which callbacks held the loop since the last time, in seconds
of this thread's processor time: other processes of the machine do not count. A thread takes the
stack of one that takes long.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from typing import Any, Final

import orjson
from aiohttp import web

import gateway.__main__  # first: it sets the folder of the metrics
from gateway.process import worker

TICK_SECONDS: Final = 0.001
LONG_SECONDS: Final = 0.015
MAX_KEPT: Final = 20

create_app = worker.create_app


class Monitor:
    """Measures the processor time between two ticks of the loop, which is one turn of it."""

    def __init__(self) -> None:
        self.pauses: list[tuple[float, list[str]]] = []
        self.ticks = 0
        self._ticked_at = time.monotonic()
        self._processor_seconds = 0.0
        self._stack: list[str] = []
        self._thread = threading.get_ident()

    async def start(self, _app: web.Application) -> None:
        self._thread = threading.get_ident()
        self._processor_seconds = time.thread_time()
        threading.Thread(target=self._watch, daemon=True).start()
        self._tick()

    def take(self) -> dict[str, Any]:
        pauses, self.pauses = sorted(self.pauses, reverse=True), []
        ticks, self.ticks = self.ticks, 0
        return {"ticks": ticks, "pauses": pauses}

    def _tick(self) -> None:
        self._note(time.thread_time())
        asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _note(self, now: float) -> None:
        held, self._processor_seconds = now - self._processor_seconds, now
        stack, self._stack = self._stack, []
        self._ticked_at = time.monotonic()
        self.ticks += 1
        self.pauses.append((held, stack))
        if len(self.pauses) > 50 * MAX_KEPT:
            self.pauses = sorted(self.pauses, reverse=True)[:MAX_KEPT]

    def _watch(self) -> None:
        while True:
            time.sleep(LONG_SECONDS / 3)
            if time.monotonic() - self._ticked_at > LONG_SECONDS and not self._stack:
                frame = sys._current_frames().get(self._thread)
                self._stack = traceback.format_stack(frame)[-6:]


monitor = Monitor()


async def report(_request: web.Request) -> web.Response:
    return web.Response(body=orjson.dumps(monitor.take()), content_type="application/json")


def create_watched_app(*given: Any, **more: Any) -> web.Application:
    app = create_app(*given, **more)
    app.router.add_get("/loop", report)
    app.on_startup.append(monitor.start)
    return app


worker.create_app = create_watched_app
gateway.__main__.main()
