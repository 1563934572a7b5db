"""The cells of wrk and the servers of each. Without I/O.

A cell is one kind of request, of one size, over a number of connections. All servers of a cell get
the same requests, one server right after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["hit", "bought"]

SIZES: Final = {"2 KB": 2 * 1024, "2 MB": 2 * 1024 * 1024}
"""Bytes of an image's base64."""

CONNECTIONS: Final = (1, 16)

GATEWAY: Final = "gateway"
ADMITTED: Final = "gateway, admitted at the store"
"""The same process, with a key whose `requests_per_minute` is counted before each answer."""
NO_MEMORY_CACHE: Final = "gateway, not in memory"
"""A gateway without a memory cache, on the same Redis."""
EMBEDDED: Final = "gateway, embedded store"
BARE: Final = "bare"
"""For a hit, a handler with one round trip to Redis; for a purchase, one that forwards."""
BARE_MEMORY: Final = "bare, from memory"
BARE_REDIS: Final = "bare, bytes from Redis"
NGINX_CACHE: Final = "nginx, cache hit"
NGINX_PROXY: Final = "nginx, plain proxy"
NGINX_STORED: Final = "nginx, stored miss"
UPSTREAM: Final = "upstream"
PEERS: Final = ("litellm", "portkey")


@dataclass(frozen=True)
class Cell:
    """One kind of request, sent to several servers."""

    kind: Kind
    size: str
    connections: int
    images: int = 0
    """Different images that hits request in turn; 0: one."""

    @property
    def name(self) -> str:
        kind = "hit" if self.kind == "hit" else "purchase"
        images = f" {self.images:,} images" if self.images else ""
        return f"{kind} {self.size} c={self.connections}{images}"

    @property
    def servers(self) -> Sequence[str]:
        """In the order of the table."""
        if self.kind == "bought":
            ours = (GATEWAY, EMBEDDED)
            return (*ours, BARE, NGINX_STORED, NGINX_PROXY, UPSTREAM, *PEERS)
        if self.images:
            return (NO_MEMORY_CACHE, BARE_REDIS)
        ours = (GATEWAY, ADMITTED) if self.size == "2 KB" else (GATEWAY,)
        return (*ours, EMBEDDED, BARE, BARE_MEMORY, NGINX_CACHE, UPSTREAM)


HIT_SMALL: Final = Cell("hit", "2 KB", 16)
HIT_LARGE: Final = Cell("hit", "2 MB", 16)
HIT_COLD: Final = Cell("hit", "2 MB", 16, images=64)
"""Several images, because requests for the same image at once share one read of its bytes."""
PURCHASE_SMALL: Final = Cell("bought", "2 KB", 16)
PURCHASE_LARGE: Final = Cell("bought", "2 MB", 16)
LATENCY: Final = Cell("bought", "2 KB", 1)

SHORT: Final[Mapping[Cell, Sequence[str]]] = {
    HIT_SMALL: (GATEWAY, ADMITTED, EMBEDDED, BARE),
    LATENCY: (GATEWAY, UPSTREAM),
    PURCHASE_SMALL: (GATEWAY, BARE, *PEERS),
    HIT_LARGE: (GATEWAY, EMBEDDED, BARE, NGINX_CACHE),
    PURCHASE_LARGE: (GATEWAY, BARE, NGINX_STORED),
}
"""The cells of the short run, and those of their servers that a floor or a ratio needs."""


def all_cells() -> Iterator[Cell]:
    """Every cell of one image, grouped by size."""
    for size in SIZES:
        for kind in ("hit", "bought"):
            for connections in CONNECTIONS:
                yield Cell(kind, size, connections)


def chosen_cells(text: str, *, is_short: bool) -> dict[Cell, Sequence[str]]:
    """The cells whose name contains `text`, and the servers of each."""
    cells = SHORT if is_short else {cell: cell.servers for cell in all_cells()}
    return {cell: servers for cell, servers in cells.items() if text in cell.name}
