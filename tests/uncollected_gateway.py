"""The command line, with workers that never collect: `python -m tests.uncollected_gateway serve …`.

`GET /garbage` says what the collector would have had to free since the last time. Other paths have
faults that no request should reach in the gateway itself.
"""

from __future__ import annotations

import gc
import resource
from collections import Counter
from pathlib import Path
from typing import Any, Final

import orjson
from aiohttp import web

import gateway.__main__  # first: it sets the folder of the metrics
from gateway.process import worker
from gateway.proxy.context import RequestContext

PAGE_BYTES: Final = resource.getpagesize()

tune_process, create_app = worker.tune_process, worker.create_app


def tune_without_collector() -> None:
    tune_process()
    gc.disable()


async def report_garbage(_request: web.Request) -> web.Response:
    resident_bytes = _resident_bytes()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    types = Counter(f"{type(found).__module__}.{type(found).__name__}" for found in gc.garbage)
    requests = sum(isinstance(found, web.BaseRequest | RequestContext) for found in gc.garbage)
    found = {
        "resident_bytes": resident_bytes,
        "objects": len(gc.garbage),
        "requests": requests,
        "types": dict(types.most_common(30)),
    }
    gc.garbage.clear()
    gc.collect()
    return web.Response(body=orjson.dumps(found), content_type="application/json")


async def fail(request: web.Request) -> web.StreamResponse:
    """Fails with an error in a variable of this frame, so that it refers to itself."""
    error = {"fault": RuntimeError("a fault"), "timeout": TimeoutError()}[
        request.match_info["error"]
    ]
    if "begun" in request.query:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"the first bytes")
    raise error


def create_app_with_report(*given: Any, **more: Any) -> web.Application:
    app = create_app(*given, **more)
    app.router.add_get("/garbage", report_garbage)
    app.router.add_get("/{error:fault|timeout}", fail)
    return app


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


worker.tune_process = tune_without_collector
worker.create_app = create_app_with_report
gateway.__main__.main()
