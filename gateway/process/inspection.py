"""What a worker's admin API shows of its configuration, and of the checks of `gateway doctor`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.api.inspection import Inspection
from gateway.catalog import CatalogError
from gateway.configuration.effective import effective_settings
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.process.checks import examine_settings, judge_settings
from gateway.process.configuration_check import check_configuration
from gateway.process.findings import Finding
from gateway.wiring.policy import served_policy


def create_inspection(configuration: Configuration, settings: Settings) -> Inspection:
    """Of a worker with these settings, which it has read at its start. Reads the files."""
    values = configuration.read_values()

    def examine() -> Sequence[Finding]:
        # On an event loop of its own, in a thread of its own: some checks read many files.
        return asyncio.run(examine_worker(configuration, settings))

    return Inspection(
        settings=lambda: list(
            effective_settings(settings, values, file=configuration.files.gateway)
        ),
        judge=lambda: judge_settings(settings),
        examine=examine,
    )


async def examine_worker(configuration: Configuration, settings: Settings) -> Sequence[Finding]:
    """Every check, with the settings of the worker. Files that have changed are checked too."""
    found = await asyncio.to_thread(check_configuration, configuration)
    # What they warn of concerns the next start. This worker is judged by its own settings.
    faults = [finding for finding in found if finding.level == "fault"]
    files = faults or [Finding("configuration", "ok", str(configuration.files))]
    try:
        catalog = served_policy(configuration.read_policy(), settings).catalog
    except (CatalogError, ConfigError):
        catalog = None  # the fault is among those of the files
    return [*files, *await examine_settings(settings, catalog)]
