"""What a hit and a purchase of 2 KB take as connections, keys and ledger records grow.

`scale` measures the curves of entries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway.configuration.settings import Settings
from tests.bench.cells import Cell
from tests.bench.filling import create_keys, write_records
from tests.bench.load import Target, measure, run_wrk
from tests.bench.processor_time import until_idle
from tests.bench.results import Measurement, Part, Servers
from tests.bench.servers import LIMITS, PURCHASE_LIMITS, Setup, run_gateway, with_limits
from tests.gateways import make_settings

CONNECTIONS: Final = (1, 4, 16, 64, 256)
KEYS: Final = (1, 100, 10_000)
RECORDS: Final = (0, 10_000, 100_000, 1_000_000)
USUAL_CONNECTIONS: Final = 16
VERIFICATION_SECONDS: Final = 65.0


def measure_curves(folder: Path, setup: Setup, *, records: int, seconds: int) -> Iterator[Part]:
    """A curve of each kind, of one gateway on a database of its own in Redis."""
    own_url = setup.redis_url.rpartition("/")[0] + "/3"
    own = replace(setup, folder=folder / "curves", redis_url=own_url)
    own.folder.mkdir()
    with run_gateway(own, "curves", own_url) as gateway:
        kept = with_limits(gateway, setup.size, PURCHASE_LIMITS)
        yield Part(curves={"connections": tuple(_connections(gateway, kept, seconds))})
        settings = make_settings(own.folder / "curves" / "data", setup.upstream, own_url)
        points = _records(gateway, kept, settings, records=records, seconds=seconds)
        yield Part(curves={"ledger records": tuple(points)})
        # The last one: once a minute, a gateway looks at the limits of all keys in use.
        yield Part(curves={"keys": tuple(_keys(gateway, settings, own.folder, seconds))})


def _connections(gateway: Target, kept: Target, seconds: int) -> Iterator[tuple[float, Servers]]:
    for connections in CONNECTIONS:
        print(f"{connections} connections …", file=sys.stderr)  # noqa: T201
        yield connections, _point(gateway, kept, connections, seconds=seconds)


def _keys(
    gateway: Target, settings: Settings, folder: Path, seconds: int
) -> Iterator[tuple[float, Servers]]:
    """The keys take turns. All of their limits are counted at the store."""
    file, secrets = folder / "keys", list[str]()
    for count in KEYS:
        print(f"{count:,} keys …", file=sys.stderr)  # noqa: T201
        secrets += create_keys(settings, count - len(secrets), LIMITS)
        file.write_text("\n".join(secrets) + "\n")
        yield count, _point(gateway, gateway, USUAL_CONNECTIONS, seconds=seconds, keys_file=file)


def _records(
    gateway: Target, kept: Target, settings: Settings, *, records: int, seconds: int
) -> Iterator[tuple[float, Servers]]:
    written = 0
    for count in RECORDS:
        if count <= records:
            print(f"{count:,} ledger records …", file=sys.stderr)  # noqa: T201
            write_records(settings, count - written)
            # Totals have the records within seconds; verification runs every minute.
            until_idle(gateway.processes, watch_seconds=VERIFICATION_SECONDS)
            written = count
            yield count, _point(gateway, kept, USUAL_CONNECTIONS, seconds=seconds)


def _point(
    gateway: Target,
    kept: Target,
    connections: int,
    *,
    seconds: int,
    keys_file: Path | None = None,
) -> dict[str, Measurement]:
    hit, purchase = Cell("hit", "2 KB", connections), Cell("bought", "2 KB", connections)
    run_wrk(kept, hit, seconds=1, keys_file=keys_file)
    found = {"hit": measure(kept, hit, seconds=seconds, keys_file=keys_file)}
    found["purchase"] = measure(gateway, purchase, seconds=seconds, keys_file=keys_file)
    return found
