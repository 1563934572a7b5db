"""Nginx as the upstream, and in the gateway's place: as a plain proxy and as a cache.

The upstream answers every POST from a file, so it is never the bottleneck. It returns the same
image for every prompt. Each nginx is one process without a master.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pybase64
from PIL import Image

from tests.bench.processes import run_process
from tests.ports import free_port

PATH = "v1/images/generations"

_COMMON = """
daemon off;
master_process off;
pid %(folder)s/nginx.pid;
error_log %(folder)s/error.log;
events { worker_connections 1024; }
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

_PROXIES = """
    upstream upstream {
        server 127.0.0.1:%(upstream_port)d;
        keepalive 64;
        keepalive_requests 1000000000;
    }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_cache_path %(folder)s/cache keys_zone=images:10m;
    server {
        listen 127.0.0.1:%(proxy_port)d;
        location / { proxy_pass http://upstream; }
    }
    server {
        listen 127.0.0.1:%(cache_port)d;
        open_file_cache max=10;
        location / {
            proxy_pass http://upstream;
            proxy_cache images;
            proxy_cache_methods POST;
            proxy_cache_key $uri$request_body;
            proxy_cache_valid 200 1h;
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


@contextmanager
def run_upstream(folder: Path, answers: dict[str, bytes]) -> Iterator[int]:
    """Serves each answer under `/<name>/v1/images/generations`; yields the port."""
    for name, answer in answers.items():
        path = folder / "answers" / name / PATH
        path.parent.mkdir(parents=True)
        path.write_bytes(answer)
    port = free_port()
    with _run_nginx("the upstream", folder, _UPSTREAM, port=port):
        yield port


@contextmanager
def run_proxies(folder: Path, upstream_port: int) -> Iterator[tuple[int, int]]:
    """Yields the ports of a plain proxy and of a cache in front of that upstream."""
    folder.mkdir()
    proxy_port, cache_port = free_port(), free_port()
    ports = {"proxy_port": proxy_port, "cache_port": cache_port, "upstream_port": upstream_port}
    with _run_nginx("nginx", folder, _PROXIES, port=proxy_port, **ports):
        yield proxy_port, cache_port


@contextmanager
def _run_nginx(name: str, folder: Path, servers: str, *, port: int, **ports: int) -> Iterator[None]:
    facts = {"folder": folder, "port": port, **ports}
    file = folder / "nginx.conf"
    file.write_text(_COMMON % {**facts, "servers": servers % facts})
    with run_process(name, ["nginx", "-p", folder, "-c", file], port=port, folder=folder):
        yield
