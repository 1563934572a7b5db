"""Reports and exports of the books, with their settings."""

from __future__ import annotations

from urllib.parse import urlsplit

from gateway.billing.focus_export import FocusExport, FocusSettings
from gateway.billing.reports import Reports, ReportSettings
from gateway.billing.totals import Totals, TotalsSettings
from gateway.configuration.settings import Settings
from gateway.store.protocol import Store


def wire_reports(settings: Settings, store: Store) -> Reports:
    """Reports, for commands. No I/O."""
    totals = Totals(store, totals_settings(settings), worker="", observer=_Uncounted())
    return Reports(store, totals, report_settings(settings))


def wire_focus(settings: Settings, store: Store) -> FocusExport:
    """Exports of months, for commands. No I/O."""
    totals = Totals(store, totals_settings(settings), worker="", observer=_Uncounted())
    return FocusExport(store, totals, focus_settings(settings))


class _Uncounted:
    """Discards what metrics would count: a command exports none."""

    def unreadable(self, records: int) -> None:
        """Counts nothing."""


def totals_settings(settings: Settings) -> TotalsSettings:
    """The settings of `billing.totals`."""
    return TotalsSettings(
        time_zone=settings.billing.time_zone,
        keep_days_seconds=settings.billing.keep_totals_seconds,
        # Users come and go with the records that name them.
        keep_users_seconds=settings.billing.keep_records_seconds,
    )


def report_settings(settings: Settings) -> ReportSettings:
    """The settings of `billing.reports`."""
    return ReportSettings(
        time_zone=settings.billing.time_zone,
        keep_records_seconds=min(
            settings.billing.keep_free_records_seconds, settings.billing.keep_records_seconds
        ),
        keep_days_seconds=settings.billing.keep_totals_seconds,
        keep_users_seconds=settings.billing.keep_records_seconds,
    )


def focus_settings(settings: Settings) -> FocusSettings:
    """The settings of `billing.focus_export`: whose service is charged for."""
    accounts = settings.accounts
    hosts = [urlsplit(one.base_url).hostname or one.name for one in accounts]
    return FocusSettings(
        time_zone=settings.billing.time_zone,
        provider=", ".join(dict.fromkeys(hosts)),
        account=", ".join(one.name for one in accounts),
        keep_days_seconds=settings.billing.keep_totals_seconds,
    )
