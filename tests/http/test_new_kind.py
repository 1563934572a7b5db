"""A model of a new kind is rows in `config/` alone: listed, validated, priced, cached, drawn."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.dashboard_page import sign_in_as_admin
from tests.gateways import (
    CONFIG,
    Client,
    InProcess,
    PolicyFile,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)

KITE = """
  kite-1:
    created: 1790000000
    owned_by: pond
    cache_epoch: 1
    prompt_max_characters: 200
    parameters:
      n: {type: integer, min: 1, max: 4, default: 1}
      size: {type: choice, values: [640x320, 320x640, 480x480], default: 480x480}
      guidance: {type: decimal, min: 1, max: 20, default: 3.5, step: 0.1}
      noise: {type: decimal, min: -1, max: 1, decimals: 3}
      seed: {type: integer, min: 0, max: 4294967295}
      tiling: {type: boolean}
      sampler: {type: choice, values: [euler, heun]}
      negative_prompt: {type: string, max_length: 12}
      camera:
        type: object
        fields:
          lens: {type: choice, values: [wide, tele], default: wide}
          place:
            type: object
            fields: {height: {type: decimal, min: 0, max: 90}}
            required: [height]
      user: *user
    rules:
      - when: {tiling: {equals: true}, seed: {given: false}}
        error: {message: A tiled image needs a seed., param: seed}
      - when: {sampler: {not_equals: heun}, noise: {given: true}}
        error: {message: noise is for the sampler heun., param: noise}
    billing:
      by: image
      priced_by: [size]
      usd_per_image: {640x320: "0.011", 320x640: "0.012", 480x480: "0.013"}

  kite-0:
    created: 1790000000
    owned_by: pond
    cache_epoch: 1
    prompt_max_characters: 200
    parameters:
      guidance: {type: decimal, min: 1, max: 20, default: 3.5}
    billing: {by: image, priced_by: [], usd_per_image: "0.004"}
"""


@dataclass(frozen=True)
class Sky:
    """A gateway and a simulated upstream with a copy of the shipped folder and the new rows."""

    gateway: InProcess
    alice: Client
    upstream: Upstream

    async def ask(self, **body: object) -> Reply:
        return await self.alice.ask(**{"model": "kite-1", "prompt": "a kite", **body})

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.alice.send("GET", path, headers=headers)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> PolicyFile:
    folder = tmp_path_factory.mktemp("kites") / "config"
    shutil.copytree(CONFIG, folder)
    with (folder / "models.yaml").open("a", encoding="utf-8") as file:
        file.write(KITE)
    return PolicyFile(folder / "models.yaml")


@pytest.fixture
async def sky(rows: PolicyFile, tmp_path: Path, store_url: str | None) -> AsyncIterator[Sky]:
    async with run_upstream(rows.read_policy().catalog) as upstream:
        settings = make_settings(tmp_path / "data", upstream.base_url, store_url)
        async with run_gateway(settings, policy=rows) as gateway:
            yield Sky(gateway, await gateway.client.with_key("alice"), upstream)


BODIES = (
    # what a client writes, and what is forwarded of it
    ({}, {}),
    ({"guidance": 7}, {"guidance": 7}),
    ({"guidance": 7.3}, {"guidance": 7.3}),
    ({"seed": 0, "tiling": False}, {"seed": 0, "tiling": False}),
    ({"seed": 1, "tiling": True}, {"seed": 1, "tiling": True}),
    ({"sampler": "heun", "noise": -0.125}, {"sampler": "heun", "noise": -0.125}),
    ({"negative_prompt": "no clouds"}, {"negative_prompt": "no clouds"}),
    ({"camera": {"lens": "tele"}}, {"camera": {"lens": "tele"}}),
    (
        {"camera": {"place": {"height": 30.0}, "lens": None}},
        {"camera": {"place": {"height": 30}}},
    ),
    ({"size": "640x320", "n": 2}, {"size": "640x320", "n": 2}),
)
SAME = (
    # other spellings of one of these
    ({"guidance": 7.0}, {"guidance": 7}),
    ({"guidance": 3.5}, {}),
    ({"guidance": None, "camera": {}}, {}),
    ({"camera": {"lens": "wide"}}, {}),
    ({"camera": {"lens": "wide", "place": {"height": 30}}}, {"camera": {"place": {"height": 30}}}),
)
REFUSED = (
    ({"guidance": 0.9}, "decimal_below_min_value", "guidance"),
    ({"guidance": 20.1}, "decimal_above_max_value", "guidance"),
    ({"guidance": 7.35}, "invalid_value", "guidance"),
    ({"guidance": "7"}, "invalid_type", "guidance"),
    ({"guidance": True}, "invalid_type", "guidance"),
    ({"sampler": "heun", "noise": 0.1234}, "invalid_value", "noise"),
    ({"noise": 0.5}, None, "noise"),
    ({"tiling": True}, None, "seed"),
    ({"seed": 4294967296}, "integer_above_max_value", "seed"),
    ({"negative_prompt": "no clouds, no"}, "string_above_max_length", "negative_prompt"),
    ({"camera": {"lense": "tele"}}, "unknown_parameter", "camera.lense"),
    ({"camera": {"place": {}}}, "missing_required_parameter", "camera.place.height"),
    ({"camera": {"place": {"height": 91}}}, "decimal_above_max_value", "camera.place.height"),
    ({"camera": [1]}, "invalid_type", "camera"),
    ({"size": "1024x1024"}, "invalid_value", "size"),
    ({"quality": "low"}, "unknown_parameter", "quality"),
)


async def test_a_model_of_a_new_kind_needs_rows_only(sky: Sky) -> None:
    listed = (await sky.get("/v1/models")).json["data"]
    assert {"kite-0", "kite-1"} <= {model["id"] for model in listed}

    for body, code, param in REFUSED:
        refused = await sky.ask(**body)
        assert refused.status == 400, (body, refused.body)
        assert (refused.error["code"], refused.error["param"]) == (code, param), body
        # The simulated upstream finds the same with checks of its own.
        direct = Client(sky.upstream.root, sky.alice.session)
        seen = await direct.ask(**{"model": "kite-1", "prompt": "a kite", **body})
        assert (seen.status, seen.error["code"], seen.error["param"]) == (400, code, param), body
    await sky.upstream.forget()

    for body, forwarded in BODIES:
        bought = await sky.ask(**body)
        assert (bought.status, bought.cache_status) == (200, "fwd=miss; stored"), bought.body
        (sent,) = await sky.upstream.bodies()
        assert sent == {"model": "kite-1", "prompt": "a kite", **forwarded}
        await sky.upstream.forget()
    for body, same in SAME:
        hit = await sky.ask(**body)
        assert hit.cache_status.startswith("hit"), body
        assert hit.images == (await sky.ask(**same)).images
    assert await sky.upstream.bodies() == []

    sized = await sky.ask(size="640x320", n=2, prompt="two kites")
    assert sized.headers["x-gateway-cost-usd"] == "0.022000"
    drawn = Image.open(io.BytesIO(base64.b64decode(sized.images[1])))
    assert (drawn.format, drawn.size) == ("PNG", (40, 20))
    plain = await sky.alice.ask("a kite", model="kite-0")
    assert (plain.status, plain.headers["x-gateway-cost-usd"]) == (200, "0.004000")
    (record,) = [one for one in await sky.gateway.ledger() if one.model == "kite-0"]
    assert (record.costs, record.size, record.quality) == ({"image": 4000}, None, None)


async def test_the_new_kinds_are_in_the_schema_and_the_dashboard(sky: Sky) -> None:
    document = (await sky.get("/openapi.json")).json
    schema = document["components"]["schemas"]["Generation-kite-1"]
    guidance = schema["properties"]["guidance"]
    assert guidance == {
        "type": ["number", "null"],
        "minimum": 1,
        "maximum": 20,
        "multipleOf": 0.1,
        "default": 3.5,
    }
    place = schema["properties"]["camera"]["properties"]["place"]
    assert (place["required"], place["additionalProperties"]) == (["height"], False)
    assert schema["properties"]["negative_prompt"]["maxLength"] == 12
    assert "default" not in schema["properties"]["seed"]

    admin = await sign_in_as_admin(sky.gateway.client)
    models = (await admin.get("/models"))["data"]
    kite = next(model for model in models if model["id"] == "kite-1")
    shown = {parameter["name"]: parameter for parameter in kite["parameters"]}
    assert (shown["guidance"]["min"], shown["guidance"]["step"]) == (1, 0.1)
    assert shown["seed"]["default"] is None
    assert [field["name"] for field in shown["camera"]["fields"]] == ["lens", "place"]
    assert shown["camera"]["fields"][1]["fields"][0]["required"]
