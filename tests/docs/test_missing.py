"""README's *Not there yet* is complete, and names nothing that is there.

`PLANNED` is what the gateway is to have: each name is either in the code or in that list. What is
built is taken off the list, and a new plan is added here and there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import click
import pytest
import yaml
from aiohttp import web

from gateway.access.key_records import KeySpec
from gateway.api.dashboard.routes import dashboard_routes
from gateway.api.routes import ALL_TABLES, health_routes
from gateway.catalog import parse_catalog
from gateway.cli.main import cli, imported
from gateway.configuration.fields import parse_redis_url
from gateway.configuration.settings import Settings
from tests.docs.pages import ROOT, codes, read_page, rows_with

README = (ROOT / "README.md").read_text(encoding="utf-8")
LISTED = {
    row["kind"]: codes(row["not there yet"]) for row in rows_with(README, "kind", "not there yet")
}

PLANNED = {
    "commands": """
        serve, demo, simulate, doctor, completion, open, backup, restore, audit,
        keys add, keys list, keys show, keys set, keys rotate, keys revoke, keys add --label,
        teams add, teams list, teams show, teams set, teams remove, limits show, limits raise,
        usage, usage export, requests show, ledger export, ledger verify, ledger repair,
        cache stats, cache purge, cache takedown, cache warm, config check, config show,
        upstreams list, upstreams disable, upstreams enable""",
    "paths": """
        /v1/images/generations, /v1/images/edits, /v1/images/variations, /v1/models, /v1/usage,
        /v1/usage/ask-for-more,
        /admin/keys, /admin/keys/{id}, /admin/keys/{id}/rotate, /admin/teams, /admin/limits,
        /admin/usage, /admin/usage/focus.csv, /admin/audit, /admin/images, /admin/requests/{id},
        /admin/cache, /admin/cache/purge, /admin/cache/takedown, /v1/organization/usage/images,
        /v1/organization/costs, /dashboard, /metrics, /healthz, /readyz""",
    "settings": """
        server.listen, server.admin_listen, server.tls.cert, server.metrics_token,
        server.trusted_proxies, server.max_connections, store.redis_url, store.blobs_url,
        upstreams, queue.max_wait, billing.time_zone, billing.metric_labels, cache.scope,
        rehost.allow, validation""",
    "addresses of the store": "redis://, rediss://, redis+sentinel://, redis+cluster://",
    "fields of a key": """
        name, team, models, limits, expires_at, validation, scope, reuse, parallel,
        hits_report_usage, user_header, labels, priority, allow_no_cache""",
    "fields of models.yaml": "default_model, default_gpt_model, aliases, retired, unknown_models",
    "models": """
        dall-e-2, dall-e-3, gpt-image-1, gpt-image-1-mini, gpt-image-1.5, gpt-image-2,
        chatgpt-image-latest, gpt-image-2.5-flare, gpt-image-2.5-sunburst, gpt-image-2.6-flare,
        gpt-image-2.6-sunburst""",
    "headers": """
        x-gateway-cost-usd, x-gateway-saved-usd, x-gateway-hint, x-gateway-notice,
        x-gateway-image-ids, x-gateway-model, x-gateway-model-retires""",
    "metrics": """
        requests_total, request_duration_seconds, overhead_seconds, inflight_requests,
        upstream_requests_total, upstream_duration_seconds, upstream_retries_total,
        upstream_breaker_open, stream_first_event_seconds, tokens_total, images_total,
        cost_usd_total, spend_usd, reserved_usd, limit_max, limit_used_ratio, ledger_balanced,
        queue_length, queue_wait_seconds, refusals_total, cache_entries, cache_bytes,
        cache_evictions_total, flights, rehost_total, store_up, store_errors_total,
        config_reload_failures_total, price_table_age_seconds, build_info, charged_usd_total,
        corrected_usd_total, saved_usd_total, first_charge_timestamp_seconds, upstream_up,
        upstream_last_success_timestamp_seconds, window_start_timestamp_seconds,
        window_end_timestamp_seconds, cache_limit_bytes, model_shutdown_timestamp_seconds,
        workers, workers_configured, worker_memory_bytes, worker_cpu_seconds_total""",
}


def has_command(name: str) -> bool:
    """Whether a command, or an option of one, exists."""
    command: click.Command = cli
    for word in name.split():
        if word.startswith("--"):
            return any(word in parameter.opts for parameter in command.params)
        if not isinstance(command, click.Group) or word not in command.commands:
            return False
        command = imported(command.commands[word])
    return True


def has_path(path: str) -> bool:
    app = web.Application()
    for table in (*ALL_TABLES, dashboard_routes, health_routes):
        app.add_routes(table())
    example = re.sub(r"\{\w+\}", "x", path)
    return any(resource._match(example) is not None for resource in app.router.resources())


def has_setting(key: str) -> bool:
    section = Settings.model_json_schema(by_alias=True)
    schema = section
    for name in key.split("."):
        if name not in section["properties"]:
            return False
        rule = section["properties"][name]
        section = schema["$defs"][rule["$ref"].rpartition("/")[2]] if "$ref" in rule else {}
    return True


def has_address(scheme: str) -> bool:
    service = "/images" if scheme == "redis+sentinel://" else ""
    try:
        parse_redis_url(f"{scheme}redis{service}")
    except ValueError:
        return False
    return True


CATALOG = parse_catalog(yaml.safe_load((ROOT / "config" / "models.yaml").read_text()), file="")

HAS: Mapping[str, Callable[[str], bool]] = {
    "commands": has_command,
    "paths": has_path,
    "settings": has_setting,
    "addresses of the store": has_address,
    "fields of a key": KeySpec.model_fields.__contains__,
    "fields of models.yaml": type(CATALOG).model_fields.__contains__,
    "models": CATALOG.models.__contains__,
    "headers": lambda name: f"`{name}`" in read_page("headers.md"),
    "metrics": lambda name: f"`gateway_{name}`" in read_page("metrics.md"),
}


def names_of(kind: str) -> list[str]:
    return re.split(r",\s+", PLANNED[kind].strip())


@pytest.mark.parametrize("kind", PLANNED)
def test_a_planned_name_is_in_the_code_or_in_the_list_of_what_is_missing(kind: str):
    missing = [name for name in names_of(kind) if not HAS[kind](name)]
    assert missing == LISTED.get(kind, [])


def test_the_list_has_no_other_kind():
    assert set(LISTED) <= set(PLANNED)
