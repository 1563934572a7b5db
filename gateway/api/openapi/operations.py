"""What the document says of each route, by the route's name.

A route whose name is not here is described like the one of the same endpoint, which is the name up
to the first dot. So another path of an endpoint needs no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, get_args

from gateway.api.admin.keys import STATES
from gateway.api.openapi.headers import (
    COMMON_HEADERS,
    LIMIT_HEADERS,
    LINK_HEADERS,
)
from gateway.api.openapi.parts import (
    ADMIN_ERRORS,
    AFTER,
    CACHED_IMAGE_HEADERS,
    EXAMPLES,
    GENERATIONS,
    KEY_ERRORS,
    PURGE_RESPONSES,
    RANGE_HEADERS,
    READ_ERRORS,
    TEXT,
    USAGE_PARAMETERS,
    WITH_LIMITS,
    Content,
    Operation,
    Success,
    json_content,
    ok,
    page_size,
    query,
    report_parameters,
)
from gateway.billing import focus, organization
from gateway.events import EVENT_KINDS
from gateway.images import Outcome

OPERATIONS: Final[Mapping[str, Operation]] = {
    "generations": GENERATIONS,
    "generations.deployment": replace(
        GENERATIONS,
        summary="The same for Azure's clients, whose path names the model",
        body=Content(schema="DeploymentRequest", examples={"plain": EXAMPLES["plain"]}),
    ),
    "models": Operation(
        "List the models that the key may use",
        "images",
        {200: Success("The models.", json_content("ModelList"), (*COMMON_HEADERS, *LIMIT_HEADERS))},
        credential="key",
        errors=KEY_ERRORS,
    ),
    "model": Operation(
        "Show a model",
        "images",
        {200: Success("The model.", json_content("Model"), (*COMMON_HEADERS, *LIMIT_HEADERS))},
        credential="key",
        errors=(*KEY_ERRORS, 404),
    ),
    "usage": Operation(
        "Show what the key has used, and its limits",
        "images",
        {200: Success("Usage.", json_content("OwnUsage"), (*COMMON_HEADERS, *LIMIT_HEADERS))},
        credential="key",
        parameters=USAGE_PARAMETERS,
        errors=(400, *KEY_ERRORS),
    ),
    "ask_for_more": Operation(
        "Ask the operators for more of a limit, once in its window",
        "images",
        ok(
            "AskedForMore",
            "Whether a webhook notifies the operators, or they see it on their dashboard.",
        ),
        credential="key",
        body=Content(
            schema="AskForMore",
            examples={"money": {"value": {"limit": "usd_per_month", "amount": 20}}},
        ),
        errors=(*KEY_ERRORS, 400, 408, 413),
    ),
    "image": Operation(
        "Get the image of a link, exactly as an answer has it. The signature is the credential",
        "links",
        {
            200: Success("The image.", (Content("image/*"),), (*COMMON_HEADERS, *LINK_HEADERS)),
            206: Success("A part.", (Content("image/*"),), (*COMMON_HEADERS, *LINK_HEADERS)),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        parameters=RANGE_HEADERS,
        errors=(403, 404, 410, 412, 416, 503),
    ),
    "openapi": Operation(
        "Get this document",
        "operations",
        {
            200: Success("The document.", (Content(),), (*COMMON_HEADERS, "ETag", "Cache-Control")),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        parameters=RANGE_HEADERS[1:],
    ),
    "healthz": Operation("Is the process alive?", "operations", ok("Health", "It is.")),
    "readyz": Operation(
        "Is the gateway ready, and what is degraded?",
        "operations",
        {
            200: Success("Ready.", json_content("Readiness")),
            503: Success("Starting or draining.", json_content("Readiness")),
        },
    ),
    "metrics": Operation(
        "Metrics for Prometheus",
        "operations",
        {200: Success("Metrics in text form.", (Content("text/plain"),))},
        credential="metrics",
        errors=(401, 429),
    ),
    "admin_keys": Operation(
        "Create a key",
        "admin",
        ok("CreatedKey", "The key, with its secret.", status=201),
        credential="admin",
        body=Content(
            schema="NewKey",
            examples={"bob": {"value": {"name": "bob", "limits": {"images_per_day": 100}}}},
        ),
        errors=(*ADMIN_ERRORS, 409),
    ),
    "admin_keys.list": Operation(
        "List keys, oldest first",
        "admin",
        ok("KeyList", "The keys."),
        credential="admin",
        parameters=(
            query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000}),
            query("after", "The id of the last key of the previous page.", TEXT),
            query("search", "A part of a name, an id, a prefix, a team or a label.", TEXT),
            query("state", "By default all.", {"enum": [*STATES]}),
            WITH_LIMITS,
        ),
        errors=(400, *READ_ERRORS),
    ),
    "admin_key.show": Operation(
        "Show a key, and what it has used of its limits",
        "admin",
        ok("Key", "The key."),
        credential="admin",
        errors=(*READ_ERRORS, 404),
    ),
    "admin_key": Operation(
        "Change a key",
        "admin",
        ok("Key", "The changed key."),
        credential="admin",
        body=Content(schema="KeyChanges", examples={"vary": {"value": {"parallel": "vary"}}}),
        errors=(*ADMIN_ERRORS, 404, 409),
    ),
    "admin_key_rotate": Operation(
        "Give a key a new secret",
        "admin",
        ok("CreatedKey", "The key, with its new secret.", status=201),
        credential="admin",
        body=Content(schema="Rotation", examples={"day": {"value": {"overlap": "24h"}}}),
        errors=(*ADMIN_ERRORS, 404, 409),
    ),
    "admin_key.revoke": Operation(
        "Revoke a key",
        "admin",
        {204: Success("The key is revoked.")},
        credential="admin",
        errors=(*READ_ERRORS, 404, 409),
    ),
    "admin_audit": Operation(
        "List changes of keys, teams and limits, purges and take-downs, newest first",
        "admin",
        ok("AuditEvents", "The events."),
        credential="admin",
        parameters=(
            query("since", "From when on: `30d` before now, a date in UTC, Unix seconds.", TEXT),
            query("until", "Before when, written the same way.", TEXT),
            query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000}),
            query("after", "The id of the last event of the previous page.", TEXT),
        ),
        errors=(400, *READ_ERRORS),
    ),
    "admin_teams": Operation(
        "Create a team",
        "admin",
        ok("Team", "The team.", status=201),
        credential="admin",
        body=Content(
            schema="NewTeam",
            examples={"art": {"value": {"name": "art", "limits": {"usd_per_month": 200}}}},
        ),
        errors=(*ADMIN_ERRORS, 409),
    ),
    "admin_teams.list": Operation(
        "List teams by name, also those that only keys name",
        "admin",
        ok("TeamList", "The teams."),
        credential="admin",
        parameters=(WITH_LIMITS,),
        errors=(400, *READ_ERRORS),
    ),
    "admin_team.show": Operation(
        "Show a team",
        "admin",
        ok("Team", "The team."),
        credential="admin",
        errors=(*READ_ERRORS, 404),
    ),
    "admin_team": Operation(
        "Change a team",
        "admin",
        ok("Team", "The changed team."),
        credential="admin",
        body=Content(schema="TeamChanges", examples={"scope": {"value": {"scope": "team"}}}),
        errors=(*ADMIN_ERRORS, 404, 409),
    ),
    "admin_team.remove": Operation(
        "Remove a team without active keys",
        "admin",
        {204: Success("The team is removed.")},
        credential="admin",
        errors=(*READ_ERRORS, 404, 409),
    ),
    "admin_limits.show": Operation(
        "Show the limits of a key, a team or everyone, and what is used of them",
        "admin",
        ok("Limits", "The limits."),
        credential="admin",
        parameters=(query("scope", "`everyone`, `team:NAME` or `key:NAME`.", TEXT),),
        errors=(400, *READ_ERRORS, 404),
    ),
    "admin_limits": Operation(
        "Change the limits of a key, a team or everyone",
        "admin",
        ok("Limits", "The limits as they are now."),
        credential="admin",
        body=Content(
            schema="LimitChanges",
            examples={
                "money": {"value": {"scope": "everyone", "limits": {"usd_per_month": 500}}},
            },
        ),
        errors=(*ADMIN_ERRORS, 404, 409),
    ),
    "admin_raise": Operation(
        "Add to a limit until the end of a day",
        "admin",
        ok("Raise", "The raise.", status=201),
        credential="admin",
        body=Content(
            schema="NewRaise",
            examples={
                "campaign": {
                    "value": {
                        "scope": "team:art",
                        "limit": "usd_per_month",
                        "amount": 20,
                        "until": "2099-12-31",
                        "reason": "spring campaign",
                    }
                }
            },
        ),
        errors=(*ADMIN_ERRORS, 404, 409),
    ),
    "admin_raise.end": Operation(
        "End a raise before its time",
        "admin",
        {204: Success("The raise has ended.")},
        credential="admin",
        errors=(*READ_ERRORS, 404, 409),
    ),
    "admin_cache": Operation(
        "Show the size of the cache",
        "admin",
        ok("CacheStatistics", "Number of images, their bytes, and the bound."),
        credential="admin",
        errors=READ_ERRORS,
    ),
    "admin_purge": Operation(
        "Empty slots of the cache; links keep working",
        "admin",
        PURGE_RESPONSES,
        credential="admin",
        body=Content(schema="PurgeRequest", examples={"tag": {"value": {"tag": "spring"}}}),
        errors=ADMIN_ERRORS,
    ),
    "admin_purges": Operation(
        "Show how far a purge is",
        "admin",
        ok("Purge", "The purge."),
        credential="admin",
        errors=(*READ_ERRORS, 404),
    ),
    "admin_takedown": Operation(
        "Remove an image everywhere, and refuse its bytes from now on",
        "admin",
        PURGE_RESPONSES,
        credential="admin",
        body=Content(schema="TakedownRequest"),
        errors=(*ADMIN_ERRORS, 404),
    ),
    "admin_images": Operation(
        "List the images of the cache, newest first",
        "admin",
        ok("ImageList", "Those that meet all conditions. A page may have fewer than `limit`."),
        credential="admin",
        parameters=(
            query("limit", "By default 60.", {"type": "integer", "minimum": 1, "maximum": 100}),
            query("after", "The `after` of the previous page.", TEXT),
            query("model", "Only of this model.", TEXT),
            query("size", "Only of this size: `1024x1024`.", TEXT),
            query("key", "Only those that the key of this name bought.", TEXT),
            query("key_id", "Only those that the key of this id bought.", TEXT),
            query("tag", "Only those that were bought with this tag.", TEXT),
            query("since", "Unix seconds, a date of UTC, or a duration before now: `7d`.", TEXT),
            query("until", "The same; the list ends before it.", TEXT),
        ),
        errors=(400, *READ_ERRORS),
    ),
    "admin_image": Operation(
        "Show an image of the cache",
        "admin",
        ok("CachedImage", "The image."),
        credential="admin",
        errors=(*READ_ERRORS, 404, 410),
    ),
    "admin_thumbnail": Operation(
        "Get the thumbnail of an image: a WebP of at most 320 pixels",
        "admin",
        {
            200: Success("The thumbnail.", (Content("image/webp"),), CACHED_IMAGE_HEADERS),
            206: Success("A part.", (Content("image/webp"),), CACHED_IMAGE_HEADERS),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        credential="admin",
        parameters=RANGE_HEADERS,
        errors=(*READ_ERRORS, 404, 410, 416),
    ),
    "admin_image_file": Operation(
        "Get an image exactly as upstream answered it",
        "admin",
        {
            200: Success("The image.", (Content("image/*"),), CACHED_IMAGE_HEADERS),
            206: Success("A part.", (Content("image/*"),), CACHED_IMAGE_HEADERS),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        credential="admin",
        parameters=(
            *RANGE_HEADERS,
            query("download", "If it is there, browsers save the image as a file.", TEXT),
        ),
        errors=(*READ_ERRORS, 404, 410, 416),
    ),
    "admin_usage": Operation(
        "Show the usage of all keys",
        "admin",
        {
            200: Success(
                "Usage.",
                (*json_content("UsageReport"), Content("text/csv")),
                (*COMMON_HEADERS, "Content-Disposition"),
            )
        },
        credential="admin",
        parameters=(
            *USAGE_PARAMETERS,
            query("team", "Only this team; other dimensions likewise.", TEXT),
            query("what_if", "`quality=low`, …, or `cache=off`: what it would have cost.", TEXT),
            query("format", "`json` or `csv`.", {"enum": ["json", "csv"]}),
        ),
        errors=(400, *READ_ERRORS),
    ),
    "admin_overview": Operation(
        "Show spending, health, and what needs attention",
        "admin",
        ok("Overview", "What could be read; while the store is unavailable, the rest is null."),
        credential="admin",
        errors=(400, *READ_ERRORS),
    ),
    "admin_requests": Operation(
        "List the latest requests, and why some were refused or failed",
        "admin",
        ok("RequestList", "Newest first. A page reads a bounded part of the ledger."),
        credential="admin",
        parameters=(
            query("outcome", f"Comma-separated: {', '.join(get_args(Outcome))}.", TEXT),
            query("key", "The name of a key.", TEXT),
            query("model", "A model.", TEXT),
            query("flag", "A flag of the record, such as `over_estimate`.", TEXT),
            query("since", "From when on: `1h` before now, a date in UTC, Unix seconds.", TEXT),
            page_size(500),
            AFTER,
        ),
        errors=(400, *READ_ERRORS),
    ),
    "admin_events": Operation(
        "List events, newest first, whether or not a webhook got them",
        "admin",
        ok("EventList", "The events that are kept."),
        credential="admin",
        parameters=(
            query("kind", f"Comma-separated: {', '.join(EVENT_KINDS)}.", TEXT),
            page_size(500),
            AFTER,
        ),
        errors=(400, *READ_ERRORS),
    ),
    "admin_settings": Operation(
        "Show the settings in use, and where each comes from",
        "admin",
        ok("SettingList", "Every setting; secrets are masked."),
        credential="admin",
        errors=(400, 401, 429),
    ),
    "admin_doctor": Operation(
        "Check everything that the gateway depends on",
        "admin",
        ok("FindingList", "A finding for each check. It takes seconds."),
        credential="admin",
        errors=(400, 401, 429),
    ),
    "admin_request": Operation(
        "Show the cost of a request, why it was refused, and what served it",
        "admin",
        ok("FoundRequest", "Its ledger records, and its purchases that are not settled."),
        credential="admin",
        parameters=(
            query(
                "since",
                "From when on to search, for an id that does not begin with its time: `30d` before "
                "now, a date in UTC, Unix seconds.",
                TEXT,
            ),
        ),
        errors=(400, *READ_ERRORS, 404),
    ),
    "admin_upstream": Operation(
        "Show how purchases end, and why the last ones failed",
        "admin",
        ok("Upstreams", "Every account at upstream, of all workers and gateways together."),
        credential="admin",
        errors=READ_ERRORS,
    ),
    "admin_upstream.switch": Operation(
        "Take an account at upstream out of service, or put it back",
        "admin",
        ok("Upstream", "The account. Every worker knows it within a second."),
        credential="admin",
        body=Content(
            schema="UpstreamSwitch",
            examples={"disable": {"value": {"enabled": False, "reason": "its bill is disputed"}}},
        ),
        errors=(*ADMIN_ERRORS, 404),
    ),
    "admin_focus": Operation(
        "Export a month's costs in FOCUS",
        "admin",
        {
            200: Success(
                "CSV, with a line for each line item of each day.",
                (Content("text/csv"),),
                (*COMMON_HEADERS, "Content-Disposition"),
            )
        },
        credential="admin",
        parameters=(
            query(
                "month",
                "A month of `billing.time_zone`: `2026-11`.",
                {"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$"},
                required=True,
            ),
            query(
                "version",
                f"Of FOCUS; by default {focus.DEFAULT_VERSION}.",
                {"enum": [*focus.VERSIONS]},
            ),
        ),
        errors=(400, *READ_ERRORS),
    ),
    "organization_usage": Operation(
        "Report images, requests and tokens in OpenAI's shape",
        "admin",
        ok("OrganizationUsage", "A page of buckets."),
        credential="admin",
        parameters=report_parameters(organization.USAGE),
        errors=(400, *READ_ERRORS),
    ),
    "organization_costs": Operation(
        "Report costs in OpenAI's shape",
        "admin",
        ok("OrganizationCosts", "A page of buckets."),
        credential="admin",
        parameters=report_parameters(organization.COSTS),
        errors=(400, *READ_ERRORS),
    ),
    "admin_signing": Operation(
        "Make a new key that signs links",
        "admin",
        ok("SigningKey", "The id of the new key.", status=201),
        credential="admin",
        errors=(*READ_ERRORS, 409),
    ),
}

PREFLIGHT: Final = Operation(
    "Ask whether a page of another origin may call",
    "images",
    {204: Success("The methods and headers that it may use are in `Access-Control-Allow-…`.")},
)
"""Of every OPTIONS route."""


def describe(name: str, method: str) -> Operation:
    """The operation of a route. Raises `KeyError` for a route without a row."""
    if method == "OPTIONS":
        return OPERATIONS.get(name, PREFLIGHT)
    return OPERATIONS[name] if name in OPERATIONS else OPERATIONS[name.partition(".")[0]]
