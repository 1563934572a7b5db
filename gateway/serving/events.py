"""The events of the gateway: what watches for them, and their webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from zoneinfo import ZoneInfo

from gateway.access.policy import CurrentPolicy
from gateway.access.revoked_secrets import RevokedSecrets
from gateway.access.watched import list_watched
from gateway.billing.alert_watch import AlertWatch
from gateway.billing.alerts import Alerts
from gateway.billing.totals import Totals
from gateway.configuration.settings import Settings
from gateway.serving.resources import Resources
from gateway.webhooks.outbox import Outbox
from gateway.webhooks.sender import Sender, SenderSettings
from gateway.wiring.access import Access


@dataclass(frozen=True, slots=True)
class Events:
    """The components that notice, keep and send events."""

    alert_watch: AlertWatch
    revoked_secrets: RevokedSecrets
    outbox: Outbox
    sender: Sender


def wire_events(
    settings: Settings,
    policy: CurrentPolicy,
    resources: Resources,
    *,
    access: Access,
    totals: Totals,
    sending: SenderSettings,
    worker: str,
) -> Events:
    """Constructs the components of `Events`."""
    store = resources.store
    outbox = Outbox(store, lambda: policy().access.webhooks)
    revoked_secrets = RevokedSecrets(store)
    zone = ZoneInfo(settings.billing.time_zone)
    alert_watch = AlertWatch(
        store,
        totals,
        outbox,
        alerts=Alerts(zone, settings.billing.time_zone),
        calendar=access.subjects.calendar,
        list_watched=lambda at: list_watched(access.keys, access.subjects, at=at),
        find_revoked_uses=revoked_secrets.find,
        retiring_models=lambda: policy().retiring_models,
        worker=worker,
    )
    sender = Sender(
        store,
        outbox,
        lambda: policy().access.webhooks,
        resources.http,
        worker=worker,
        timeout_seconds=sending.timeout_seconds,
    )
    return Events(alert_watch, revoked_secrets, outbox, sender)
