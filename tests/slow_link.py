"""A slow link between two servers. A test can cut it, and the bytes on it are then lost.

After `kill -9` the kernel still sends what the process has written. A machine that is lost sends
nothing more. A server behind a link that is cut is lost like a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK_BYTES = 1 << 16


class SlowLink:
    """Forwards connections to the port `target`. Bytes from there arrive `delay_seconds` late."""

    def __init__(self, target: int, *, delay_seconds: float) -> None:
        self.port = 0
        self._target = target
        self._delay_seconds = delay_seconds
        self._loop = asyncio.new_event_loop()
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Aborts all connections, loses the bytes on the way, and refuses further connections."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    async def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._is_cut:
                raise ConnectionRefusedError
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, there[1]}
        await asyncio.gather(
            self._pass_on(reader, there[1], delay_seconds=0.0),
            self._pass_on(there[0], writer, delay_seconds=self._delay_seconds),
        )
        self._writers -= {writer, there[1]}

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delay_seconds: float
    ) -> None:
        def write(data: bytes) -> None:
            if not self._is_cut:
                writer.write(data) if data else writer.close()

        data = b"some"
        while data:
            data = b""
            with contextlib.suppress(OSError):
                data = await reader.read(CHUNK_BYTES)
            # Chunks stay in order: each has the same delay.
            self._loop.call_later(delay_seconds, write, data)

    def run(self, is_ready: threading.Event) -> None:
        """Serves until `stop`; for a thread, because tests start servers without a loop."""

        async def listen() -> asyncio.Server:
            return await asyncio.start_server(self._accept, "127.0.0.1", 0)

        server = self._loop.run_until_complete(listen())
        self.port = server.sockets[0].getsockname()[1]
        is_ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end_tasks())
        self._loop.close()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Ends `run`."""
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def run_slow_link(target: int, *, delay_seconds: float) -> Iterator[SlowLink]:
    """Runs a link to the port `target` of this machine."""
    link, is_ready = SlowLink(target, delay_seconds=delay_seconds), threading.Event()
    thread = threading.Thread(target=link.run, args=(is_ready,))
    thread.start()
    is_ready.wait()
    try:
        yield link
    finally:
        link.stop()
        thread.join()
