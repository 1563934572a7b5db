"""What answers image requests, from their body to their record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.access.keys import Keys
from gateway.access.signing import Signing
from gateway.cache.idempotency_keys import IdempotencyKeys
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.proxy.idempotency import IdempotentImages
from gateway.proxy.images import Images
from gateway.proxy.interpret import Interpreter
from gateway.proxy.memory import Memory
from gateway.proxy.recording import Recorder
from gateway.proxy.request import Proxy
from gateway.proxy.store_outage import StoreOutage
from gateway.room_settings import interpreter_settings
from gateway.serving.books import Books
from gateway.serving.events import Events
from gateway.serving.purchasing import Purchasing
from gateway.serving.resources import Resources
from gateway.tasks import SerialThread
from gateway.wiring.cache import Cache
from gateway.wiring.signing import create_signing


@dataclass(frozen=True, slots=True)
class Requests:
    """The components that handle image requests."""

    proxy: Proxy
    signing: Signing
    body_thread: SerialThread


def wire_requests(
    settings: Settings,
    resources: Resources,
    *,
    keys: Keys,
    cache: Cache,
    purchasing: Purchasing,
    books: Books,
    events: Events,
    metrics: Metrics,
    clock: Callable[[], float],
) -> Requests:
    """Constructs the components of `Requests`. `clock` are Unix seconds."""
    store, image_cache = resources.store, cache.image_cache
    signing, body_thread = create_signing(settings, store), SerialThread("bodies")
    interpreter = Interpreter(
        interpreter_settings(settings),
        books.ledger,
        accounts=resources.pool.accounts,
        body_thread=body_thread,
    )
    images = Images(
        interpreter,
        image_cache,
        purchasing.flights,
        purchasing.purchases,
        keys=keys,
        store=store,
        unstored=purchasing.unstored,
        hits=cache.image_hits,
        transcoding=cache.transcoding if settings.cache.derive_formats else None,
        sign=signing.sign,
        price_factor=resources.pool.price_factor,
        tracer=resources.tracer,
        clock=clock,
    )
    proxy = Proxy(
        store,
        keys,
        interpreter,
        image_cache,
        images,
        memory=Memory(store.kept, image_cache, on_hit=metrics.cache.found_in_memory),
        idempotent_images=IdempotentImages(
            IdempotencyKeys(store, purchasing.tasks),
            images,
            image_cache,
            purchasing.tasks,
            waiting=purchasing.waiting,
        ),
        store_outage=StoreOutage(
            keys,
            images,
            purchasing.flights,
            purchasing.purchases,
            ignores_limits=settings.store.limits_when_unavailable == "ignore",
        ),
        recorder=Recorder(books.ledger, metrics, clock, on_refused=events.alert_watch.note_refusal),
    )
    return Requests(proxy, signing, body_thread)
