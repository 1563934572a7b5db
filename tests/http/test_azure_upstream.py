"""Azure OpenAI as upstream, Azure's class of `openai` in front: `docs/reference/dialects.md`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai import AsyncAzureOpenAI

from gateway.configuration.settings import Settings
from gateway.process.upstream_check import check_upstream
from tests.catalogs import read_shipped, shipped_catalog
from tests.gateways import (
    ADMIN_TOKEN,
    Client,
    InProcess,
    PolicyFile,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.http.test_npm_sdk import PACKAGE
from tests.npm import install_packages

MODEL, DEPLOYMENT = "gpt-image-2", "art"
VERSION = "2025-04-01-preview"
SCRIPT = Path(__file__).with_name("azure.mjs")
NOT_DEPLOYED = "gpt-image-1-mini"
EXTRAS = ("content_filter_results", "prompt_filter_results", "inner_error", "revised_prompt")


@pytest.fixture(autouse=True)
def _environment(package_environment: None) -> None:
    """For every test."""


@asynccontextmanager
async def run_azure(
    folder: Path, redis_url: str | None = None, *, path: str = "", **given: Any
) -> AsyncIterator[tuple[Client, Upstream, InProcess]]:
    """A key, a resource with two of three deployments, and the gateway between them."""
    deployments = {DEPLOYMENT: MODEL, "dall-e-3": "dall-e-3"}
    azure = {
        "dialect": "azure",
        "api_key": "azure-resource-key",
        "models": {
            **{model: name for name, model in deployments.items()},
            NOT_DEPLOYED: "gone",
            "dall-e-2": "gone",
        },
    }
    async with run_upstream(profile="azure", deployments=deployments) as upstream:
        settings = make_settings(
            folder, upstream.root + path, redis_url, upstream={**azure, **given}
        )
        async with run_gateway(settings) as gateway:
            yield await gateway.client.with_key(), upstream, gateway


def opened(client: Client) -> AsyncAzureOpenAI:
    """Azure's class, with the gateway as its resource."""
    return AsyncAzureOpenAI(
        azure_endpoint=client.url, api_key=client.secret, api_version=VERSION, max_retries=0
    )


async def test_azures_class_buys_from_azure_through_the_gateway(
    tmp_path: Path, store_url: str | None
) -> None:
    async with (
        run_azure(tmp_path, store_url) as (alice, upstream, gateway),
        opened(alice) as azure,
    ):
        bought = await azure.images.generate(model=MODEL, prompt="an otter")
        again = await azure.images.generate(model=MODEL, prompt="an otter", quality="auto")
        calls = await upstream.calls()
        link = await azure.images.generate(model="dall-e-3", prompt="an otter by link")
        image = await alice.send("GET", str(link.data[0].url).removeprefix(alice.url))
        stream = await azure.images.generate(
            model=MODEL, prompt="an otter in a stream", stream=True, partial_images=2
        )
        kinds = [event.type.rpartition(".")[2] async for event in stream]

        with pytest.raises(openai.BadRequestError) as refused:
            await azure.images.generate(model=MODEL, prompt="[[sim:moderation]] an otter")
        await upstream.forget()
        with pytest.raises(openai.BadRequestError) as repeated:
            await azure.images.generate(model=MODEL, prompt="[[sim:moderation]] an otter")
        asked_again = await upstream.calls()
        with pytest.raises(openai.NotFoundError) as missing:
            await azure.images.generate(model=NOT_DEPLOYED, prompt="an otter")
        records = {record.status: record for record in await gateway.ledger()}

    assert bought.data[0].b64_json == again.data[0].b64_json
    (call,) = calls
    # The fingerprint says OpenAI's default, and Azure's is another one.
    assert call["body"] == {"prompt": "an otter", "quality": "auto"}
    assert call["path"] == f"/openai/deployments/{DEPLOYMENT}/images/generations"
    assert call["headers"]["api-key"] == "azure-resource-key"[-4:]
    assert "authorization" not in call["headers"]
    assert image.status == 200
    assert kinds == ["partial_image", "partial_image", "completed"]

    assert refused.value.body == repeated.value.body
    assert set(refused.value.body) == {"message", "type", "param", "code"}
    assert refused.value.code == "content_policy_violation"
    assert asked_again == []
    assert missing.value.code == "DeploymentNotFound"
    assert records[404].cost_micros == 0


async def test_azures_class_of_npm_buys_from_azure_through_the_gateway(tmp_path: Path) -> None:
    package = install_packages(PACKAGE)
    async with run_azure(tmp_path) as (alice, _, _):
        process = await asyncio.create_subprocess_exec(
            *("node", SCRIPT, alice.url, alice.secret, MODEL, NOT_DEPLOYED),
            cwd=package,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    image, link, stream, refused, missing = map(json.loads, stdout.splitlines())

    assert image["length"] > 0
    assert link["url"].startswith(alice.url)
    assert [kind.rpartition(".")[2] for kind in stream["types"]] == ["partial_image", "completed"]
    assert refused == {
        "error": "BadRequestError",
        "status": 400,
        "code": "content_policy_violation",
    }
    assert missing == {"error": "NotFoundError", "status": 404, "code": "DeploymentNotFound"}


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_what_azure_answers(tmp_path: Path, store_url: str | None) -> None:
    async with run_azure(tmp_path, store_url) as (alice, upstream, gateway):

        async def ask(fault: str, **body: Any) -> Any:
            return await alice.ask(f"an otter [[sim:{fault}]]", model=MODEL, **body)

        policy = await ask("content-policy")
        output = await ask("moderation;stage=output")
        await upstream.forget()
        await ask("moderation;stage=output")
        asked_again = len(await upstream.calls())
        filtered = await ask("filtered", quality="low", size="1024x1024")
        streamed = await ask("moderation;stage=output", stream=True, partial_images=1)
        key = await ask("status=401")
        network = await ask("status=403")
        rate = await ask("429;retry-after=61")
        billing = await ask("billing-limit")
        webp = await alice.ask("an otter", model=MODEL, output_format="webp")
        plain = await alice.ask("an otter", model=MODEL)
        records = {record.request_id: record for record in await gateway.ledger()}

    def of(reply: Any) -> Any:
        return records[reply.headers["x-request-id"]]

    for reply in (policy, output, filtered):
        assert (reply.status, reply.error["code"]) == (400, "content_policy_violation")
        assert set(reply.error) == {"message", "type", "param", "code"}
    assert output.error["message"].startswith("Generated image was filtered")
    # The next image of the prompt may pass the filter.
    assert asked_again == 1
    assert of(policy).cost_micros == of(output).cost_micros == 0
    # It was made, and its usage came: 196 tokens, and the prompt.
    assert of(filtered).flags == ("undelivered",)
    assert 5_880 < of(filtered).cost_micros < 6_100
    assert b'"code":"content_policy_violation"' in streamed.body.replace(b" ", b"")
    assert key.error["code"] == network.error["code"] == "upstream_auth"
    assert "subscription key" not in key.error["message"]
    assert (rate.status, rate.headers["Retry-After"]) == (429, "61")
    assert (rate.error["code"], rate.error["type"]) == ("rate_limit_exceeded", "requests")
    assert billing.status == 400
    assert (webp.status, webp.error["param"]) == (400, "output_format")
    assert of(webp).cost_micros == 0
    assert plain.status == 200
    for extra in EXTRAS:
        assert extra.encode() not in plain.body + policy.body


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_the_v1_form_has_the_model_in_the_body(tmp_path: Path, store_url: str | None) -> None:
    path = "/openai/v1?api-version=preview"
    token = {"auth_header": "Authorization", "api_key": "token-of-entra"}
    async with run_azure(tmp_path, store_url, path=path, **token) as (alice, upstream, _):
        reply = await alice.ask("an otter", model=MODEL, quality="low")
        (call,) = await upstream.calls()

    assert reply.status == 200, reply.body
    assert call["path"] == "/openai/v1/images/generations"
    assert call["body"] == {"model": DEPLOYMENT, "prompt": "an otter", "quality": "low"}
    assert call["headers"]["authorization"] == "token-of-entra"[-4:]
    assert "api-key" not in call["headers"]


# ── beside other services ───────────────────────────────────────────────────────────────────


@asynccontextmanager
async def run_three(folder: Path) -> AsyncIterator[tuple[Client, dict[str, Upstream]]]:
    """A key, and a gateway with an account at Azure, one at OpenAI and one at xAI.

    Azure is asked first, and has one of OpenAI's models.
    """
    async with (
        run_upstream(profile="azure", deployments={"other": MODEL}) as azure,
        run_upstream() as openai_,
        run_upstream(profile="xai") as xai,
    ):
        services = {"azure": azure, "openai": openai_, "xai": xai}
        own = {"azure": {"models": {MODEL: "art"}}, "openai": {"priority": 2}, "xai": {}}
        alone = make_settings(folder, azure.base_url).model_dump(
            include={"store"}, exclude_defaults=True, by_alias=True
        )
        accounts = [
            {
                "name": name,
                "dialect": name,
                "base_url": service.base_url,
                "api_key": f"key-of-{name}",
                "group": "xai" if name == "xai" else "default",
                **own[name],
            }
            for name, service in services.items()
        ]
        settings = Settings.model_validate(
            {**alone, "server": {"admin_token": ADMIN_TOKEN}, "upstreams": accounts}
        )
        async with run_gateway(settings) as gateway:
            yield await gateway.client.with_key(), services


async def test_each_model_is_bought_from_a_service_that_has_it(tmp_path: Path) -> None:
    async with run_three(tmp_path) as (alice, services):
        listed = await alice.send("GET", "/v1/models")
        webp = await alice.ask("an otter", model=MODEL, output_format="webp")
        missing = await alice.ask("another otter", model=MODEL)
        grok = await alice.ask("an otter", model="grok-imagine-image")
        mini = await alice.ask("an otter", model=NOT_DEPLOYED)
        calls = {name: len(await service.calls()) for name, service in services.items()}

    names = {model["id"] for model in listed.json["data"]}
    assert {MODEL, NOT_DEPLOYED, "grok-imagine-image"} <= names
    assert not {name for name in names if "FLUX" in name}
    # Azure makes no webp, so it was not asked; it has no such deployment, so another one was.
    assert [reply.status for reply in (webp, missing, grok, mini)] == [200] * 4
    assert calls == {"azure": 1, "openai": 3, "xai": 1}
    assert webp.headers["x-gateway-upstream"] == missing.headers["x-gateway-upstream"] == "openai"
    assert grok.headers["x-gateway-upstream"] == "xai"


@pytest.mark.parametrize("beside", [True, False], ids=["beside OpenAI", "alone"])
async def test_what_azure_cannot_make_takes_no_turn_of_its_account(
    tmp_path: Path, store_url: str | None, beside: bool
) -> None:
    policy = PolicyFile(tmp_path / "models.yaml")
    unknown = {"unknown_models": "passthrough", "unknown_price": {"usd_per_image": "0.05"}}
    policy.models.write_text(yaml.safe_dump({**read_shipped(), **unknown}))
    async with (
        run_upstream(profile="azure", deployments={MODEL: MODEL}) as azure,
        run_upstream() as openai_,
    ):
        slow = {"dialect": "azure", "price_factor": "3", "images_per_minute": 1}
        accounts = [
            {"name": "azure", "base_url": azure.base_url, **slow},
            {"name": "openai", "base_url": openai_.base_url, "priority": 2},
        ][: 1 + beside]
        settings = make_settings(
            tmp_path / "data", "", store_url, upstreams=accounts, queue={"max_wait": "1s"}
        )
        async with run_gateway(settings, policy=policy) as gateway:
            alice = await gateway.client.with_key()
            dry = {"headers": {"Prefer": "dry-run"}}
            estimates = [
                (await alice.ask("an otter", model=MODEL, output_format=wanted, **dry)).json
                for wanted in ("webp", "png")
            ]
            unmade = [
                *[await alice.ask(f"{n}", model=MODEL, output_format="webp") for n in range(2)],
                *[await alice.ask(f"{n}", model="a/../b") for n in range(2)],
            ]
            # Azure still has its one image of this minute.
            png = await alice.ask("an otter", model=MODEL)

    assert png.headers["x-gateway-upstream"] == "azure", png.body
    assert "x-gateway-queue" not in png.headers
    webp_usd, png_usd = (estimate["estimate_usd"] for estimate in estimates)
    if beside:
        assert {reply.headers["x-gateway-upstream"] for reply in unmade} == {"openai"}
        # OpenAI is asked for a name that it does not know, because its URL has no names.
        assert [reply.status for reply in unmade] == [200, 200, 400, 400]
        assert webp_usd < png_usd / 2
    else:
        params = [reply.error["param"] for reply in unmade]
        assert params == ["output_format", "output_format", "model", "model"]
        assert {reply.status for reply in unmade} == {400}
        assert webp_usd == png_usd


async def test_doctor_checks_azure_as_purchases_call_it(tmp_path: Path) -> None:
    catalog = shipped_catalog()
    async with run_upstream(profile="azure", deployments={"art": MODEL}, keys=("k",)) as upstream:

        async def check(**given: Any) -> tuple[str, str]:
            settings = make_settings(
                tmp_path, upstream.root, upstream={"dialect": "azure", "api_key": "k", **given}
            )
            finding = await check_upstream(settings, catalog)
            return finding.level, finding.message

        good = await check()
        wrong_key = await check(api_key="other")
        wrong_dialect = await check(dialect="openai", auth_header="api-key")

    assert good[0] == "ok"
    assert "is an images API" in good[1]
    assert wrong_key[0] == wrong_dialect[0] == "fault"
    assert "refuses the key with 401" in wrong_key[1]
