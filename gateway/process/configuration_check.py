"""The check of the configuration files alone: neither store nor upstream is opened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from gateway.assembly import create_server_tls
from gateway.catalog import CatalogError
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.process.checks import (
    judge_admin_token,
    judge_prices,
    judge_settings,
    judge_unknown_prices,
)
from gateway.process.findings import Finding
from gateway.process.upstream_check import judge_accounts
from gateway.room_settings import tracing_settings
from gateway.wiring.policy import served_policy

NAME: Final = "configuration"


def check_configuration(configuration: Configuration) -> Sequence[Finding]:
    """Every fault for which `gateway serve` would not start, then what it would warn of."""
    findings: list[Finding] = []
    settings = None
    try:
        settings = configuration.read_settings()
        create_server_tls(settings)
        tracing_settings(settings, worker="")
        findings += _judge(settings)
    except ConfigError as error:
        findings += _faults(error)
    try:
        policy = configuration.read_policy()
        catalog = (served_policy(policy, settings) if settings is not None else policy).catalog
        findings.append(judge_prices(catalog.prices_as_of, today=datetime.now(UTC).date()))
        if settings is not None:  # its accounts decide which models can be bought
            findings += judge_unknown_prices(catalog)
    except (CatalogError, ConfigError) as error:
        findings += _faults(error)
    faults = [finding for finding in findings if finding.level == "fault"]
    warnings = [finding for finding in findings if finding.level == "warning"]
    return [*(faults or [Finding(NAME, "ok", str(configuration.files))]), *warnings]


def _faults(error: Exception) -> Sequence[Finding]:
    return [Finding(NAME, "fault", line) for line in str(error).splitlines()]


def _judge(settings: Settings) -> Sequence[Finding]:
    findings = [
        *judge_settings(settings),
        *judge_admin_token(settings),
    ]
    if settings.upstreams:
        findings += [Finding(NAME, "fault", fault) for fault in judge_accounts(settings)]
    elif settings.upstream.api_key is None:
        message = (
            "upstream.api_key is empty: `gateway serve` does not start without UPSTREAM_API_KEY, "
            "only `gateway demo` does."
        )
        findings.append(Finding(NAME, "warning", message))
    return findings
