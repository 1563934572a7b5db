"""The settings of what serves requests, from those of `gateway.yaml`.

`assembly` and `serving/` hand them over. `wiring/` makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

from pydantic import SecretStr

from gateway.api.services import ApiSettings
from gateway.billing.ledger import LedgerSettings
from gateway.catalog import Catalog
from gateway.configuration.expand import ConfigError
from gateway.configuration.fields import token_weakness
from gateway.configuration.settings import Settings, UpstreamSettings
from gateway.net.server_tls import TlsFiles
from gateway.proxy.interpret import InterpreterSettings
from gateway.purchasing.account_queue import Rate
from gateway.purchasing.delivery import DeliverySettings
from gateway.purchasing.purchase import PurchaseSettings
from gateway.tasks import Capacity
from gateway.tracing import TracingSettings
from gateway.upstream.dialect import Dialect
from gateway.upstream.dialects import create_dialect
from gateway.upstream.fetch import FetchSettings
from gateway.upstream.session import ClientSettings
from gateway.webhooks.sender import SenderSettings

TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file's name


EXPORTER: Final = "opentelemetry-exporter-otlp-proto-http"
"""The package of the extra `otel` that needs all others. Looked for without importing it."""


def read_admin_token(settings: Settings) -> SecretStr:
    """The token of the admin API: from the settings, else from the data folder.

    Raises `ConfigError` for a token in the folder that the settings would not accept.
    """
    if settings.server.admin_token is not None:
        return settings.server.admin_token
    path = settings.store.data_dir / TOKEN_FILE
    token = SecretStr(path.read_text("ascii", "replace").strip())
    if (problem := token_weakness(token.get_secret_value())) is not None:
        raise ConfigError(
            f"{path}: the admin token is not valid: {problem}. Delete the file to have a new one "
            "made, or set GATEWAY_ADMIN_TOKEN."
        )
    if token == settings.server.metrics_token:
        raise ConfigError(
            f"{path}: the admin token is also the metrics token. Set another GATEWAY_METRICS_TOKEN."
        )
    return token


def api_settings(settings: Settings) -> ApiSettings:
    """The settings of `api`: tokens, bounds, public URL and origins."""
    return ApiSettings(
        admin_token=read_admin_token(settings),
        metrics_token=settings.server.metrics_token,
        public_url=settings.server.link_base_url,
        is_public_url_set=settings.server.public_url is not None,
        admin_url=settings.server.admin_url,
        cors_origins=settings.server.cors_origins,
        stores_prompts=settings.cache.stores_prompts,
        redirects_links=settings.cache.links == "redirect",
        max_body_bytes=settings.server.max_body_bytes,
        body_timeout_seconds=settings.server.read_timeout_seconds,
    )


def capacities(settings: Settings) -> tuple[Capacity, Capacity]:
    """How many purchases, and how many requests that wait for others, a worker has open."""
    maximum, setting = settings.server.max_open_purchases, "server.max_open_purchases"
    return (
        Capacity(maximum, of="open purchases", setting=setting),
        Capacity(maximum, of="requests that wait for a purchase", setting=setting),
    )


def tls_files(settings: Settings) -> TlsFiles | None:
    """The files of the server's certificate; None without one."""
    tls = settings.server.tls
    return TlsFiles(tls.cert, tls.key) if tls.cert is not None and tls.key is not None else None


def interpreter_settings(settings: Settings) -> InterpreterSettings:
    """The settings of `proxy.interpret`."""
    return InterpreterSettings(
        validation=settings.validation,
        scope=settings.cache.scope,
    )


def purchase_settings(settings: Settings, worker: str) -> PurchaseSettings:
    """The settings of `purchasing.purchase`."""
    return PurchaseSettings(
        worker=worker,
        timeout_seconds=settings.timeout_seconds,
        dead_after_seconds=settings.workers.dead_after_seconds,
        stores_prompts=settings.cache.stores_prompts,
    )


def account_rates(settings: Settings) -> Mapping[str, Rate]:
    """The rate of each account at upstream."""
    return {one.name: Rate(one.images_per_minute, one.concurrent) for one in settings.accounts}


def delivery_settings(settings: Settings) -> DeliverySettings:
    """The settings of `purchasing.delivery`: the largest image that is accepted."""
    return DeliverySettings(
        max_image_bytes=settings.cache.max_image_bytes,
        max_pixels=settings.cache.max_pixels,
    )


def dialect_of(account: UpstreamSettings, catalog: Callable[[], Catalog]) -> Dialect:
    """The dialect of an account, with the rows of the current catalog. Raises `CatalogError`."""
    return create_dialect(
        account.dialect, catalog, base_url=account.base_url, api_version=account.api_version
    )


def client_settings(settings: Settings) -> Sequence[ClientSettings]:
    """The settings of `upstream.client` for each account, which redacts the secrets of all."""
    found = [_of_account(account, settings) for account in settings.accounts]
    return [
        one.model_copy(
            update={
                "secrets_of_others": tuple(
                    SecretStr(secret)
                    for other in found
                    if other is not one
                    for secret in other.secrets
                )
            }
        )
        for one in found
    ]


def _of_account(upstream: UpstreamSettings, settings: Settings) -> ClientSettings:
    return ClientSettings(
        name=upstream.name,
        base_url=upstream.base_url,
        api_key=upstream.api_key or SecretStr(""),
        timeout_seconds=upstream.timeout_seconds,
        max_image_bytes=settings.cache.max_image_bytes,
        auth_header=upstream.auth_header,
        headers=upstream.headers,
        proxy=upstream.proxy,
        ca_file=upstream.ca_file,
        breaker_failures=upstream.breaker.failures,
        breaker_open_seconds=upstream.breaker.open_seconds,
    )


def ledger_settings(settings: Settings) -> LedgerSettings:
    """The settings of `billing.ledger`: its retention."""
    return LedgerSettings(
        keep_records_seconds=settings.billing.keep_records_seconds,
        keep_free_records_seconds=settings.billing.keep_free_records_seconds,
        free_records_bytes=settings.billing.free_records_bytes,
    )


def fetch_settings(settings: Settings) -> FetchSettings:
    """The settings of `upstream.fetch`: which links may be fetched."""
    return FetchSettings(
        upstream_url=settings.accounts[0].base_url,
        more_upstream_urls=tuple(account.base_url for account in settings.accounts[1:]),
        allow=settings.rehost.allow,
        max_bytes=settings.cache.max_image_bytes,
        more_ca_files=settings.ca_files,
        secrets=tuple(client_settings(settings)[0].secrets),
    )


def tracing_settings(settings: Settings, worker: str) -> TracingSettings | None:
    """The settings of `otel`; None if traces are off. Raises `ConfigError` without the extra."""
    tracing = settings.tracing
    if tracing.endpoint is None:
        return None
    try:
        distribution(EXPORTER)
    except PackageNotFoundError:
        raise ConfigError(
            "tracing.endpoint (OTEL_EXPORTER_OTLP_ENDPOINT) is set, but OpenTelemetry is not "
            "installed: pip install image-gateway[otel], or leave it empty."
        ) from None
    return TracingSettings(
        endpoint=tracing.endpoint,
        headers=dict(tracing.headers),
        ca_file=tracing.ca_file,
        sample_ratio=tracing.sample_ratio,
        resource={
            **dict(tracing.resource_attributes),
            "service.name": tracing.service_name,
            "service.instance.id": worker,
        },
        # A purchase may go from one account to another; the requests inside of it name each.
        upstream_url="" if settings.upstreams else settings.upstream.base_url,
    )


def sender_settings(settings: Settings) -> SenderSettings:
    """The settings of `webhooks.sender`: which hosts webhooks may have."""
    return SenderSettings(allow=settings.rehost.allow, more_ca_files=settings.ca_files)
