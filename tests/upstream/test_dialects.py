"""URLs and bodies of Azure and of services that are rows, for any name of a model."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from gateway.catalog import BUILT_IN_DIALECTS, Catalog, CatalogError, DialectRow
from gateway.errors import Charge, UpstreamFailure
from gateway.images import ImageRequest
from gateway.upstream.azure import AzureDialect
from gateway.upstream.dialects import create_dialect
from gateway.upstream.services import ServiceDialect
from tests.catalogs import shipped_catalog

RESOURCE = "https://art.openai.azure.com"
DATED = "?api-version=2025-04-01-preview"


def url_of(base: str, model: str = "art", **given: str) -> str:
    return str(AzureDialect(base, **given).generations_url(URL(base), model))


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/openai/deployments/art/images/generations" + DATED),
        ("/", "/openai/deployments/art/images/generations" + DATED),
        ("/openai", "/openai/deployments/art/images/generations" + DATED),
        ("/team/openai/", "/team/openai/deployments/art/images/generations" + DATED),
        ("/openai/deployments/one", "/openai/deployments/one/images/generations" + DATED),
        ("/openai/v1", "/openai/v1/images/generations"),
        ("/openai/v1/", "/openai/v1/images/generations"),
        ("/openai/v1?api-version=preview", "/openai/v1/images/generations?api-version=preview"),
        (
            "?api-version=2026-01-01",
            "/openai/deployments/art/images/generations?api-version=2026-01-01",
        ),
    ],
)
def test_where_azure_is_asked(base: str, path: str) -> None:
    assert url_of(RESOURCE + base) == RESOURCE + path


def test_the_version_of_the_settings_goes_before_all_others() -> None:
    url = url_of(f"{RESOURCE}?api-version=2026-01-01", api_version="2026-02-02")
    assert url.endswith("?api-version=2026-02-02")
    assert url_of(f"{RESOURCE}/openai/v1", api_version="preview").endswith("?api-version=preview")


@pytest.mark.parametrize("base", ["", "/openai", "/openai/deployments/one"])
def test_azure_lists_its_models(base: str) -> None:
    base = RESOURCE + base
    assert str(AzureDialect(base).models_url(URL(base))) == f"{RESOURCE}/openai/models{DATED}"


def in_path() -> ServiceDialect:
    return ServiceDialect(lambda: DialectRow(path="/run/{model}", model="none"))


@given(st.text(min_size=1, max_size=40))
def test_no_name_of_a_model_leads_to_another_path(model: str) -> None:
    """Clients choose the names of unknown models."""
    request = ImageRequest(model, "an otter")
    for dialect, base, path, separator in (
        (AzureDialect(RESOURCE), RESOURCE, r"/openai/deployments/[^/?#]+/images/generations", ""),
        (in_path(), f"{RESOURCE}/v1", r"/v1/run/[^?#]+", "/"),
    ):
        if {"", ".", ".."} & set(model.split("/")):
            with pytest.raises(UpstreamFailure) as refused:
                dialect.forwarded_body(request, images=1)
            assert (refused.value.status, refused.value.charge) == (400, Charge.FREE)
            continue
        body = dialect.forwarded_body(request, images=1)
        url = dialect.generations_url(URL(base), model)
        assert re.fullmatch(path, url.raw_path)
        assert not {".", ".."} & set(url.raw_path.split("/"))
        assert url.host == "art.openai.azure.com"
        assert separator or model in url.path
        assert "model" not in json.loads(body)


ROW = DialectRow(
    query={"mode": "fast"},
    auth_header="Authorization",
    auth_scheme="Key",
    prompt="text",
    n="samples",
    response_format="base64",
    rename={"guidance": "cfg"},
    drop=("user", "background"),
    constants={"watermark": False},
    explicit=("steps",),
)
OURS = st.dictionaries(
    st.sampled_from(["guidance", "background", "seed", "steps", "watermark"]), st.integers(0, 9)
)


@given(OURS, st.integers(1, 10), st.booleans())
def test_a_body_has_the_rows_names_and_nothing_else(
    parameters: dict[str, int], images: int, stream: bool
) -> None:
    request = ImageRequest(
        "m",
        "an otter",
        parameters=parameters,
        requested_response_format="url",
        user="alice",
        defaults={"steps": 20, "seed": 1},
        stream=True,
        partial_images=2,
    )
    dialect = ServiceDialect(lambda: ROW)
    expected = {"watermark": False, "steps": 20, **parameters}
    expected.pop("background", None)
    if "guidance" in expected:
        expected["cfg"] = expected.pop("guidance")
    expected |= {"model": "m", "text": "an otter", "response_format": "base64"}
    if images > 1:
        expected["samples"] = images

    assert json.loads(dialect.forwarded_body(request, images=images, stream=stream)) == expected
    assert dialect.auth.value("k") == "Key k"
    url = dialect.generations_url(URL("https://h/v1?a=b"), "m")
    assert str(url) == "https://h/v1/images/generations?a=b&mode=fast"


def test_a_service_that_makes_one_image_a_call_is_not_asked_for_more() -> None:
    dialect = ServiceDialect(lambda: DialectRow(n="none"))
    assert "n" not in json.loads(dialect.forwarded_body(ImageRequest("m", "x"), images=1))
    with pytest.raises(UpstreamFailure) as refused:
        dialect.forwarded_body(ImageRequest("m", "x"), images=2)
    assert (refused.value.status, refused.value.param) == (400, "n")
    assert refused.value.charge is Charge.FREE


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"model": "none"}, "the path needs {model}"),
        ({"rename": {"n": "samples"}}, "'n' has a key of its own"),
        ({"rename": {"seed": "prompt"}}, "'prompt' of the body has two meanings"),
        ({"rename": {"seed": "s"}, "drop": ["seed"]}, "both renamed and dropped"),
        ({"paht": "/x"}, "the nearest valid one is 'path'"),
        ({"path": "images"}, "String should match pattern"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(row: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        DialectRow.model_validate(row)


def test_dialects_are_found_by_name() -> None:
    catalog: Catalog = shipped_catalog()
    for name in (*BUILT_IN_DIALECTS, *catalog.dialects):
        assert create_dialect(name, lambda: catalog, base_url=RESOURCE)
    with pytest.raises(CatalogError, match=r"there is no dialect 'togehter'.* is 'together'"):
        create_dialect("togehter", lambda: catalog, base_url=RESOURCE)
