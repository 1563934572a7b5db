"""Open purchases of expired workers, written into the store as those workers would have done.

Each has a lease and a reservation. If its image was received, it also has the bytes and the
received journal. The gateway under test recovers them.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

from gateway.access.key_spaces import Credential
from gateway.access.keys import Keys
from gateway.billing import pricing, quota
from gateway.billing.ledger import draft
from gateway.cache.flight_events import Flight
from gateway.catalog import Catalog
from gateway.configuration.settings import Settings
from gateway.images import Amounts, Image, ImageRequest, Usage
from gateway.purchasing.journal import Received, Reserved
from gateway.request.fingerprint import fingerprint
from gateway.request.validation import validate
from gateway.simulator.drawing import draw_image
from gateway.store.batch import Batch, execute
from gateway.store.commands import AcquireLease, Receive
from gateway.wiring.stores import open_store
from tests.catalogs import shipped_catalog
from tests.gateways import MODEL, USUAL

LEASE_SECONDS = 600.0
UPSTREAM, PRICE_DATE = "of-the-dead", "2026-01-02"


@dataclass(frozen=True)
class OpenPurchase:
    """An open purchase of an expired worker."""

    purchase: str
    estimate: Amounts
    data: bytes
    """The image, if it was received."""
    charge: Amounts
    """The charge of the image, if it was received."""


def estimate(prompt: str, *, images: int = 1, **body: Any) -> Amounts:
    """The estimate that a purchase reserves."""
    request, catalog = _request(prompt, **body)
    return pricing.estimate(catalog.models[MODEL], request, images).amounts


async def leave_purchase(
    settings: Settings,
    secret: str,
    prompt: str,
    *,
    received: bool,
    worker: str = "a-dead-worker",
    replacements: int = 0,
) -> OpenPurchase:
    """Writes an open purchase of `prompt` for a key, in state `reserved` or `received`."""
    request, catalog = _request(prompt)
    model = catalog.models[MODEL]
    key = fingerprint(
        request,
        cache_epoch=model.cache_epoch,
        upstream_name=settings.upstream.name,
        scope="global",
    )
    purchase = secrets.token_hex(12)
    async with open_store(settings) as (store, blobs):
        subject = (await Keys(store).authenticate(Credential.of(secret))).principal
        record = draft(subject, request_id=f"req_{secrets.token_hex(16)}", time=time.time())
        record = record.but(id=purchase, model=MODEL, n=1, fingerprint=key, outcome="bought")
        record = record.but(upstream=UPSTREAM, price_date=PRICE_DATE)
        flight = Flight(purchase, key, (0,), replacements=replacements)
        amounts = pricing.estimate(model, request, 1).amounts
        reserved = Reserved(purchase, flight, amounts, record)
        await execute(store, AcquireLease(key, flight.slots, flight.id, LEASE_SECONDS))
        batch = Batch(store)
        quota.reserve(
            batch, subject, purchase, worker=worker, estimate=amounts, payload=reserved.encode()
        )
        await batch.execute()
        data = draw_image(prompt, width=64, height=64, format="png", seed=7)
        charge = Amounts(images=1, tokens=150, usd_micros=4321)
        if received:
            image = _image(data, charge)
            costs = {"image_out": charge.usd_micros}
            bill = record.but(
                images=1,
                cost_micros=charge.usd_micros,
                tokens={"image_out": 150},
                costs=costs,
            )
            payload = Received(reserved, {0: image}, charge, bill).encode()
            await blobs.put(image.digest, data, 3600.0)
            await execute(store, Receive(purchase, payload))
    return OpenPurchase(purchase, amounts, data, charge)


def _request(prompt: str, **body: Any) -> tuple[ImageRequest, Catalog]:
    catalog = shipped_catalog()
    complete = {**USUAL, "prompt": prompt, **body}
    return validate(complete, catalog, allowed_models=None), catalog


def _image(data: bytes, charge: Amounts) -> Image:
    return Image(
        id=secrets.token_hex(12),
        digest=hashlib.sha256(data).hexdigest(),
        format="png",
        width=64,
        height=64,
        size_bytes=len(data),
        created_at=time.time(),
        usage=Usage(image_out=charge.tokens),
        cost_micros=charge.usd_micros,
        echoed={"size": "1024x1024", "quality": "high"},
    )
