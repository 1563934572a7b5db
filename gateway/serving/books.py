"""The books: what requests cost, and the reports and exports of it."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.billing.focus_export import FocusExport
from gateway.billing.ledger import Ledger
from gateway.billing.limit_gauges import LimitGauges
from gateway.billing.recent_days import RecentDays
from gateway.billing.recent_requests import RecentRequests
from gateway.billing.reports import Reports
from gateway.billing.running_totals import RunningTotals
from gateway.billing.totals import Observer, Totals
from gateway.billing.verification import Verification
from gateway.configuration.settings import Settings
from gateway.purchasing.request_search import RequestSearch
from gateway.room_settings import ledger_settings
from gateway.store.protocol import Store
from gateway.wiring.access import Access
from gateway.wiring.books import focus_settings, report_settings, totals_settings
from gateway.wiring.verification import create_verification


@dataclass(frozen=True, slots=True)
class Books:
    """The components that write and read the books."""

    ledger: Ledger
    totals: Totals
    reports: Reports
    running_totals: RunningTotals
    limit_gauges: LimitGauges
    focus: FocusExport
    request_search: RequestSearch
    recent_days: RecentDays
    recent_requests: RecentRequests
    verification: Verification


def wire_books(
    settings: Settings, store: Store, access: Access, *, worker: str, observer: Observer
) -> Books:
    """Constructs the components of `Books`."""
    ledgers = ledger_settings(settings)
    totals = Totals(store, totals_settings(settings), worker=worker, observer=observer)
    return Books(
        Ledger(store, ledgers),
        totals,
        reports=Reports(store, totals, report_settings(settings)),
        running_totals=RunningTotals(store, settings.billing.metric_labels),
        limit_gauges=LimitGauges(store),
        focus=FocusExport(store, totals, focus_settings(settings)),
        request_search=RequestSearch(store, ledgers),
        recent_days=RecentDays(store, totals, access.subjects.calendar),
        recent_requests=RecentRequests(store),
        verification=create_verification(settings, store, access.keys, worker=worker),
    )
