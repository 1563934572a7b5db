"""The running flights of this worker that other requests may follow."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.cache.flight_events import Flight


class RunningFlights(dict[str, dict[str, Flight]]):
    """Flights by fingerprint and id."""

    def add(self, flight: Flight) -> None:
        """Adds a flight until `forget`."""
        self.setdefault(flight.fingerprint, {})[flight.id] = flight

    def forget(self, flight: Flight) -> None:
        """Removes a flight that has ended, if it is one of these."""
        of_fingerprint = self.get(flight.fingerprint, {})
        of_fingerprint.pop(flight.id, None)
        if not of_fingerprint:
            self.pop(flight.fingerprint, None)

    def of(self, fingerprint: str) -> list[Flight]:
        """The flights of a fingerprint, oldest first."""
        return list(self.get(fingerprint, {}).values())

    def leaders(self, fingerprint: str, slots: Iterable[int]) -> dict[int, str]:
        """Those of `slots` that are being bought, each with the id of its flight."""
        if fingerprint not in self:
            return {}
        bought = {slot: flight.id for flight in self.of(fingerprint) for slot in flight.slots}
        return {slot: bought[slot] for slot in slots if slot in bought}
