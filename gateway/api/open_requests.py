"""Image requests that are not answered yet, bounded per key and per client address.

Every worker counts its own. A request whose client has disconnected does not count: its purchase
goes on, and is bounded by `server.max_open_purchases`.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from aiohttp import web

from gateway.errors import ErrorCode, LimitExceeded
from gateway.images import Principal
from gateway.net.client_address import network_of

_Owner = tuple[Literal["key", "address"], str]

RETRY_SECONDS: Final = 1


class Place:
    """The place of one request among the open ones."""

    def __init__(self, requests: OpenRequests) -> None:
        self._requests = requests
        self._owners: list[_Owner] = []

    def enter(self, request: web.Request, *, key: Principal, address: str) -> None:
        """Counts the request. Raises 429 if its key or address has as many open as it may."""
        self._owners = self._requests.add(self, request, key=key, address=address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the place, if there is one."""
        if self._owners:
            self._requests.remove(self, self._owners)


class OpenRequests:
    """The open image requests of one worker. A maximum of 0 is no bound."""

    def __init__(self, *, max_per_key: int, max_per_address: int) -> None:
        self._max_per_key = max_per_key
        self._max_per_address = max_per_address
        self._open: dict[_Owner, dict[Place, web.Request]] = {}

    def place(self) -> Place:
        """A place that a request can enter; it is left with its `with` block."""
        return Place(self)

    def add(
        self, place: Place, request: web.Request, *, key: Principal, address: str
    ) -> list[_Owner]:
        """Adds a request; returns the owners that it counts for. Raises 429, and adds nothing."""
        owners: list[_Owner] = []
        if self._max_per_key:
            name, scope = f"Key '{key.key_name}'", f"key:{key.key_name}"
            self._check(("key", key.key_id), name, self._max_per_key, scope=scope)
            owners.append(("key", key.key_id))
        if self._max_per_address:
            network = network_of(address)
            self._check(
                ("address", network), "Your address", self._max_per_address, scope="address"
            )
            owners.append(("address", network))
        for owner in owners:
            self._open.setdefault(owner, {})[place] = request
        return owners

    def remove(self, place: Place, owners: list[_Owner]) -> None:
        """Removes a request that was added."""
        for owner in owners:
            found = self._open.get(owner, {})
            found.pop(place, None)
            if not found:
                self._open.pop(owner, None)

    def _check(self, owner: _Owner, name: str, maximum: int, *, scope: str) -> None:
        found = self._open.get(owner, {})
        if len(found) < maximum:
            return
        # Only at the bound, so that other requests do not pay for it.
        for place in [p for p, request in found.items() if _has_disconnected(request)]:
            del found[place]
        if len(found) < maximum:
            return
        setting = f"server.max_open_per_{owner[0]}"
        raise LimitExceeded(
            f"{name} has {maximum:,} image requests open at this worker, as many as {setting} "
            f"allows. Please try again in {RETRY_SECONDS}s.",
            reason=f"max_open_per_{owner[0]}",
            scope=scope,
            type="requests",
            code=ErrorCode.TOO_MANY_OPEN,
            headers={"Retry-After": str(RETRY_SECONDS)},
        )


def _has_disconnected(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
