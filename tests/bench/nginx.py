"""Nginx as the upstream, and in the gateway's place: as a plain proxy and as a cache.

The upstream answers every POST from a file, so it is never the bottleneck. It returns the same
image for every prompt. Each nginx has one worker. The caches have a master too, because only its
cache manager keeps them within their bounds: one is for hits, and one stores every answer.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pybase64
from PIL import Image

from tests.bench.processes import run_process
from tests.ports import free_port

PATH = "v1/images/generations"

_COMMON = """
daemon off;
master_process %(master)s;
user root;
pid %(folder)s/nginx.pid;
error_log %(folder)s/error.log;
events { worker_connections 4096; }
http {
    access_log off;
    default_type application/json;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    %(servers)s
}
"""

_UPSTREAM = """
    open_file_cache max=10;
    server {
        listen 127.0.0.1:%(port)d;
        root %(folder)s/answers;
        error_page 405 =200 $uri;  # a POST to a file
    }
"""

_TO_UPSTREAM = """
    upstream upstream {
        server 127.0.0.1:%(upstream_port)d;
        keepalive 64;
        keepalive_requests 1000000000;
    }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
"""

_PROXY = """
    server {
        listen 127.0.0.1:%(port)d;
        location / { proxy_pass http://upstream; }
    }
"""

_CACHE = """
    proxy_cache_path %(folder)s/cache levels=1:2 keys_zone=images:50m max_size=1g inactive=1h
        use_temp_path=off;
    server {
        listen 127.0.0.1:%(port)d;
        open_file_cache max=10;
        location / {
            proxy_pass http://upstream;
            proxy_cache images;
            proxy_cache_methods POST;
            proxy_cache_key $uri$request_body;
            proxy_cache_valid 200 1h;
            add_header X-Cache-Status $upstream_cache_status;
        }
    }
"""


def answer_of(base64_bytes: int) -> bytes:
    """OpenAI's answer with one image of about that much base64."""
    document = {
        "created": 1_700_000_000,
        "background": "opaque",
        "data": [{"b64_json": pybase64.b64encode(_noise(base64_bytes * 3 // 4)).decode()}],
        "output_format": "png",
        "quality": "high",
        "size": "1024x1024",
        "usage": {
            "input_tokens": 13,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 13},
            "output_tokens": 4160,
            "total_tokens": 4173,
        },
    }
    return orjson.dumps(document)


def _noise(size_bytes: int) -> bytes:
    """A PNG of noise, which does not compress: a byte for each pixel."""
    side = math.isqrt(size_bytes) + 1
    pixels = random.Random(size_bytes).randbytes(side * side)
    file = io.BytesIO()
    Image.frombytes("L", (side, side), pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


@dataclass(frozen=True)
class Nginx:
    """One running nginx."""

    port: int
    pid: int


@contextmanager
def run_upstream(folder: Path, answers: dict[str, bytes]) -> Iterator[Nginx]:
    """Serves each answer under `/<name>/v1/images/generations`."""
    for name, answer in answers.items():
        path = folder / "answers" / name / PATH
        path.parent.mkdir(parents=True)
        path.write_bytes(answer)
    with _run_nginx("the upstream", folder, _UPSTREAM) as upstream:
        yield upstream


@contextmanager
def run_proxy(folder: Path, upstream: Nginx) -> Iterator[Nginx]:
    """A plain proxy in front of that upstream."""
    facts = {"upstream_port": upstream.port}
    with _run_nginx("nginx-proxy", folder, _TO_UPSTREAM + _PROXY, **facts) as proxy:
        yield proxy


@contextmanager
def run_cache(folder: Path, upstream: Nginx) -> Iterator[Nginx]:
    """A cache of at most a gigabyte in front of that upstream, on disk."""
    facts = {"upstream_port": upstream.port, "master": "on"}
    with _run_nginx("nginx-cache", folder, _TO_UPSTREAM + _CACHE, **facts) as cache:
        yield cache


@contextmanager
def _run_nginx(name: str, folder: Path, servers: str, **facts: str | int) -> Iterator[Nginx]:
    folder.mkdir(exist_ok=True)
    port = free_port()
    facts = {"master": "off", "folder": str(folder), "port": port, **facts}
    file = folder / "nginx.conf"
    file.write_text(_COMMON % {**facts, "servers": servers % facts})
    command = ["nginx", "-p", folder, "-c", file]
    with run_process(name, command, port=port, folder=folder) as pid:
        yield Nginx(port, pid)
