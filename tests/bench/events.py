"""An upstream that streams three partial images and the image, without delay between them.

Runs as its own process: `python -m tests.bench.events PORT ANSWER_FILE`. The file holds an answer
of `nginx.answer_of`; every event has its image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import uvloop
from aiohttp import web

PARTIALS = 3
USAGE = {"input_tokens": 9, "output_tokens": 572, "total_tokens": 581}


def frames_of(answer: bytes) -> list[bytes]:
    """The events of a stream with this answer's image."""
    image = orjson.loads(answer)["data"][0]["b64_json"]
    partials = [("partial_image", {"partial_image_index": index}) for index in range(PARTIALS)]
    return [
        _frame(f"image_generation.{kind}", {"b64_json": image, **fields})
        for kind, fields in [*partials, ("completed", {"usage": USAGE})]
    ]


def _frame(name: str, fields: dict[str, object]) -> bytes:
    return f"event: {name}\ndata: ".encode() + orjson.dumps({"type": name, **fields}) + b"\n\n"


def create_app(frames: list[bytes]) -> web.Application:
    """Answers every POST with these frames."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for frame in frames:
            await response.write(frame)
        return response

    app = web.Application()
    app.router.add_post("/{any:.*}", handle)
    return app


def main() -> None:
    """Serves until the process is terminated."""
    port, answer_file = sys.argv[1:]
    app = create_app(frames_of(Path(answer_file).read_bytes()))
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
