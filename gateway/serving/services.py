"""Constructs `Services`, which the HTTP handlers use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gateway.access.attempts import Attempts
from gateway.access.audit import Audit
from gateway.access.declared_keys import DeclaredKeys
from gateway.access.policy import CurrentPolicy
from gateway.access.sessions import Sessions
from gateway.api.bodies import Frames
from gateway.api.inspection import Inspection
from gateway.api.open_requests import OpenRequests
from gateway.api.services import Health, OverviewCaches, Services
from gateway.billing.limit_states import read_limit_states, read_uses
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.net.client_address import TrustedProxies
from gateway.purchasing.account_states import read_budgets
from gateway.room_settings import api_settings, read_admin_token
from gateway.serving.books import Books
from gateway.serving.events import Events
from gateway.serving.purchasing import Purchasing
from gateway.serving.requests import Requests
from gateway.serving.resources import Resources
from gateway.tasks import SingleFlight
from gateway.wiring.access import Access
from gateway.wiring.cache import Cache


def wire_services(
    settings: Settings,
    policy: CurrentPolicy,
    resources: Resources,
    *,
    access: Access,
    cache: Cache,
    books: Books,
    events: Events,
    purchasing: Purchasing,
    requests: Requests,
    metrics: Metrics,
    health: Health,
    inspection: Inspection,
    worker: str,
    clock: Callable[[], float],
) -> Services:
    """Constructs `Services`: one row for each of its fields.

    Reads the admin token's file if the settings have no token. `clock` are Unix seconds.
    """
    store = resources.store
    return Services(
        api_settings(settings),
        proxy=requests.proxy,
        keys=access.keys,
        audit=Audit(store, keep_seconds=settings.billing.keep_records_seconds),
        attempts=Attempts(),
        sessions=Sessions(store, admin_token=read_admin_token(settings)),
        trusted_proxies=TrustedProxies(settings.server.trusted_proxies),
        open_requests=OpenRequests(
            max_per_key=settings.server.max_open_per_key,
            max_per_address=settings.server.max_open_per_address,
        ),
        frames=Frames(),
        signing=requests.signing,
        cache=cache,
        policy=policy,
        metrics=metrics,
        reports=books.reports,
        teams=access.teams,
        limit_changes=access.limit_changes,
        read_limit_states=partial(read_limit_states, store),
        read_uses=partial(read_uses, store),
        calendar=access.subjects.calendar,
        alert_watch=events.alert_watch,
        revoked_secrets=events.revoked_secrets,
        declared_keys=DeclaredKeys(store, lambda: policy().access, worker=worker),
        scrapes=SingleFlight(),
        running_totals=books.running_totals,
        limit_gauges=books.limit_gauges,
        focus=books.focus,
        health=health,
        upstream_health=purchasing.upstream_health,
        upstream_switches=purchasing.upstream_switches,
        pool=resources.pool,
        read_budgets=partial(read_budgets, store),
        request_search=books.request_search,
        recent_days=books.recent_days,
        recent_requests=books.recent_requests,
        kept_events=events.outbox.kept,
        inspection=inspection,
        doctor=SingleFlight(),
        overview_caches=OverviewCaches(),
        tracer=resources.traces,
        body_thread=requests.body_thread,
        clock=clock,
    )
