"""`gateway.yaml`: its values, its references to the environment, and its error messages."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from gateway.configuration import settings as settings_module
from gateway.configuration.expand import ConfigError
from gateway.configuration.fields import Address, parse_address, parse_proxy
from gateway.configuration.files import find_config, load_settings, read_config
from gateway.configuration.schema import SCHEMAS, json_schema, models_schema
from gateway.configuration.settings import Settings
from gateway.values import (
    parse_count,
    parse_count_or_zero,
    parse_duration,
    parse_size,
)
from tests.rows import each_row

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "config" / "gateway.yaml"
BAD_FILES = sorted((ROOT / "tests" / "config" / "bad").glob("*.yaml"))


def load(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    return load_settings(path, environ)


# ── the shipped file ────────────────────────────────────────────────────────────────────────


def test_the_shipped_file_has_the_defaults():
    assert load_settings(SHIPPED, {}) == Settings()


def test_the_defaults_are_the_documented_ones():
    settings = Settings()
    assert str(settings.server.listen) == "127.0.0.1:8080"
    assert settings.server.max_body_bytes == 1_048_576
    assert settings.server.keep_alive_seconds == 620
    assert settings.server.read_timeout_seconds == 30
    assert settings.workers.count == 1
    assert settings.workers.heartbeat_seconds == 5
    assert settings.workers.dead_after_seconds == 15
    assert settings.store.redis_url is None
    assert settings.store.data_dir == Path("data")
    assert settings.upstream.base_url == "https://api.fastapi.ai/v1"
    assert settings.upstream.name == "default"
    assert settings.upstream.timeout_seconds == 600
    assert settings.upstream.auth_header is None  # the dialect's
    assert settings.upstream.headers == {}
    assert settings.upstream.proxy is settings.upstream.ca_file is None
    assert settings.upstream.breaker.failures == 5
    assert settings.upstream.breaker.open_seconds == 10
    assert settings.cache.ttl_seconds == 30 * 86_400
    assert settings.cache.max_image_bytes == 67_108_864
    assert settings.cache.max_pixels == 33_000_000
    assert settings.log_format is None


def test_upstreams_may_be_listed_beside_the_shipped_defaults_of_upstream(tmp_path: Path):
    listed = "\nupstreams:\n  - {name: a, api_key: sk-a}\n  - {name: b, api_key: sk-b}\n"
    file = tmp_path / "gateway.yaml"
    file.write_text(SHIPPED.read_text().replace("\nupstreams:\n", listed))
    assert [account.name for account in load_settings(file, {}).accounts] == ["a", "b"]
    with pytest.raises(ConfigError, match="either upstream, for one account, or upstreams"):
        load_settings(file, {"UPSTREAM_API_KEY": "sk-other"})


def test_every_variable_of_the_shipped_file_reaches_its_setting(tmp_path: Path):
    settings = load_settings(
        SHIPPED,
        {
            "UPSTREAM_BASE_URL": "http://127.0.0.1:9000/v1/",
            "UPSTREAM_API_KEY": "sk-upstream",
            "GATEWAY_LISTEN": "[::1]:9090",
            "GATEWAY_REDIS_URL": "rediss://user:word@cache.example.com:6380/2",
            "GATEWAY_DATA_DIR": str(tmp_path),
            "GATEWAY_ADMIN_TOKEN": "an-admin-token-of-tests",
            "GATEWAY_METRICS_TOKEN": "a-metrics-token-of-tests",
            "GATEWAY_MAX_BODY": "2MiB",
            "GATEWAY_WORKERS": "4",
            "GATEWAY_LOG_FORMAT": "json",
        },
    )
    assert settings.upstream.base_url == "http://127.0.0.1:9000/v1"
    assert settings.upstream.api_key == SecretStr("sk-upstream")
    assert settings.server.listen == Address("::1", 9090)
    assert settings.store.redis_url == SecretStr("rediss://user:word@cache.example.com:6380/2")
    assert settings.store.data_dir == tmp_path
    assert settings.server.admin_token == SecretStr("an-admin-token-of-tests")
    assert settings.server.metrics_token == SecretStr("a-metrics-token-of-tests")
    assert settings.server.max_body_bytes == 2_097_152
    assert settings.workers.count == 4
    assert settings.log_format == "json"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schemas_are_up_to_date(name: str):
    """`make schemas` writes them."""
    assert json.loads(SHIPPED.with_name(name).read_text()) == SCHEMAS[name]()


def fits_models_schema(change: Callable[[dict[str, Any]], object] = lambda table: None) -> bool:
    """Whether the shipped model table fits its schema, after a change."""
    table = json.loads(json.dumps(read_config(SHIPPED.with_name("models.yaml"), {}), default=str))
    change(table)
    validator = Draft202012Validator(models_schema(), format_checker=FormatChecker())
    return validator.is_valid(table)


def test_the_shipped_model_table_fits_its_schema():
    assert fits_models_schema()
    assert fits_models_schema(lambda table: table.pop("unknown_price"))
    assert fits_models_schema(lambda table: table.update(unknown_price={"usd_per_image": "0.70"}))
    assert fits_models_schema(lambda table: table["models"]["dall-e-2"].pop("billing"))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(unknown_price="allow"),
        lambda table: table.update(unknown_price={"usd_per_image": 0.7}),
        lambda table: table.update(unknown_price={"usd": "0.7"}),
        lambda table: table.update(prices="new"),
        lambda table: table["models"]["dall-e-2"].update(id="dall-e-2"),
        lambda table: table["models"]["dall-e-2"].pop("parameters"),
        lambda table: table["models"]["dall-e-2"]["billing"].update(by="hour"),
        lambda table: table["models"]["dall-e-3"]["billing"]["usd_per_image"].update(large=0.1),
    ],
)
def test_the_schema_of_the_model_table_refuses(change: Callable[[dict[str, Any]], object]):
    assert not fits_models_schema(change)


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("cache: {links: VALUE}", "serve", "Redirect"),
        ("cache: {scope: VALUE}", "team", "teams"),
        ("store: {limits_when_unavailable: VALUE}", "ignore", "serve"),
        ("store: {blobs_url: 'VALUE'}", "redis+sentinel://h1,h2/images/0", "http://h1/0"),
        ("store: {redis_url: 'VALUE'}", "redis+cluster://h1,h2/0", "s3://bucket"),
        ("tracing: {sample_ratio: VALUE}", "0.1", "2"),
        ("upstream: {breaker: {failures: VALUE}}", "0", "-1"),
        ("validation: VALUE", "lenient", "loose"),
        ("log_format: VALUE", "json", "yaml"),
    ],
)
def test_the_schema_of_the_settings_accepts_what_the_gateway_accepts(
    tmp_path: Path, text: str, good: str, bad: str
):
    def fits_schema(value: str) -> bool:
        return Draft202012Validator(json_schema()).is_valid(
            yaml.safe_load(text.replace("VALUE", value))
        )

    load(tmp_path, text.replace("VALUE", good))
    with pytest.raises(ConfigError):
        load(tmp_path, text.replace("VALUE", bad))
    assert fits_schema(good)
    assert fits_schema("'${NAME}'" if "'" not in text else "${NAME}")
    assert not fits_schema(bad)


def test_the_schema_lists_the_values_of_every_choice():
    """So that an editor offers them."""
    schema = json_schema()
    for title, section in {"Settings": schema, **schema["$defs"]}.items():
        fields: Mapping[str, FieldInfo] = getattr(
            getattr(settings_module, title, None), "model_fields", {}
        )
        for name, field in fields.items():
            kinds = [field.annotation, *get_args(field.annotation)]
            choices = [[*get_args(kind)] for kind in kinds if get_origin(kind) is Literal]
            rules = section["properties"][field.alias or name].get("anyOf", [])
            assert [rule["enum"] for rule in rules if "enum" in rule] == choices, name


def test_the_schema_describes_every_key_and_lets_each_value_come_from_the_environment():
    """Sections and mappings cannot come from the environment; their values can."""
    schema = json_schema()
    for section in schema["$defs"].values():
        for key, rule in section.get("properties", {}).items():
            if key in ("breaker", "headers", "limits", "models", "shutdown", "tls", "upstreams"):
                continue
            assert rule["description"], key
            assert {"$ref": "#/$defs/FromEnvironment"} in rule["anyOf"], key


# ── reading ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "# nothing\n", "cache:\n", "cache: {ttl: }\n", "{}\n"])
def test_a_missing_or_empty_key_has_its_default(tmp_path: Path, text: str):
    assert load(tmp_path, text) == Settings()


def test_an_empty_variable_counts_as_unset(tmp_path: Path):
    """As in a shell: compose files pass empty variables on."""
    text = "workers: {count: '${GATEWAY_WORKERS:-3}'}\n"
    assert load(tmp_path, text, GATEWAY_WORKERS="").workers.count == 3


def test_a_variable_may_be_a_part_of_a_value(tmp_path: Path):
    text = "server: {listen: '${HOST:-127.0.0.1}:${PORT}'}\n"
    assert str(load(tmp_path, text, PORT="81").server.listen) == "127.0.0.1:81"


def test_a_reference_in_the_value_of_a_variable_is_not_expanded(tmp_path: Path):
    text = "upstream: {api_key: '${KEY}'}\n"
    settings = load(tmp_path, text, KEY="${KEY}$x", x="y")
    assert settings.upstream.api_key == SecretStr("${KEY}$x")


def test_references_are_expanded_in_nested_lists_and_mappings(tmp_path: Path):
    path = tmp_path / "models.yaml"
    path.write_text("models: [{id: '${A}', n: 2}]\n")
    assert read_config(path, {"A": "b"}) == {"models": [{"id": "b", "n": 2}]}


def test_yaml_anchors_and_merges_work(tmp_path: Path):
    settings = load(tmp_path, "upstream: &u\n  name: other\n  <<: {timeout: 5s}\n")
    assert (settings.upstream.name, settings.upstream.timeout_seconds) == ("other", 5)


def test_draining_takes_as_long_as_a_purchase_unless_set(tmp_path: Path):
    assert load(tmp_path, "upstream: {timeout: 2m}\n").drain_seconds == 120
    assert load(tmp_path, "workers: {drain_timeout: 7s}\n").drain_seconds == 7


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().cache.ttl_seconds = 5


def test_no_secret_is_in_the_printed_settings(tmp_path: Path):
    text = (
        "server: {admin_token: hunter2-hunter2-hunter2, metrics_token: hunter2-hunter2-metrics}\n"
        "store: {redis_url: 'redis://:hunter2@cache.example.com'}\n"
        "upstream: {api_key: hunter2, proxy: 'http://ann:hunter2@proxy:3128',\n"
        "  headers: {X-Entry: hunter2}}\n"
    )
    settings = load(tmp_path, text)
    assert "hunter2" not in f"{settings!r}{settings}{settings.model_dump_json()}"


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:word@h1:26379,h2,h3/images/0?sentinel_password=word",
        "redis+cluster://:word@h1:6379,h2,h3/0",
        "unix:///run/redis/redis.sock",
        "unix:///run/redis/redis.sock?db=2&password=word",
        "unix://user:word@/run/redis/redis.sock",
        "redis://:p%2Fw%23%3F@cache.example.com:6379/3",
        "redis://[::1]:6379/0",
        "rediss://cache.example.com/0?ssl_ca_certs=tests/tls/authority.pem",
        "rediss://cache.example.com?ssl_certfile=tests/tls/server.pem&ssl_keyfile=tests/tls/server-key.pem",
    ],
)
def test_every_kind_of_redis_is_accepted_for_books_and_images(tmp_path: Path, url: str):
    store = load(tmp_path, f"store: {{redis_url: '{url}', blobs_url: '{url}'}}\n").store
    assert store.redis_url == store.blobs_url == SecretStr(url)
    patterns = [
        option["pattern"]
        for field in ("redis_url", "blobs_url")
        for option in json_schema()["$defs"]["StoreSettings"]["properties"][field]["anyOf"]
        if "pattern" in option
    ]
    assert [bool(re.search(pattern, url)) for pattern in patterns] == [True, True]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:hunter/2@host:6379/0", "written as %2F"),
        ("redis://:hunter#2@host:6379/0", "written as %2F %23"),
        ("redis://u:12?hunter2@host:6379/0", "%3F"),
        ("redis://:12/hunter2@host:6379/0", "written as %2F"),
        ("redis://:hunter 2@host:6379/0", "written as"),
        ("redis://host/0/hunter2", "written as"),
        ("unix://hunter2/redis.sock", "unix:///path"),
        ("redis://host/0?ssl_ca_cert=hunter2", "ssl_ca_certs"),
        ("redis://host/0?hunter2=1", "only options that redis-py knows"),
        ("rediss://host/0?ssl_ca_certs=/hunter2", "No such file"),
        ("rediss://host/0?ssl_cert_reqs=hunter2", "only options"),
        (
            "rediss://host/0?ssl_certfile=tests/tls/server.pem&ssl_keyfile=tests/tls/renewed-key.pem",
            "ssl_keyfile",
        ),
    ],
)
@pytest.mark.parametrize("field", ["redis_url", "blobs_url"])
def test_a_redis_url_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, field: str, url: str, words: str
):
    """Without quoting it, because it may have a password."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"store: {{{field}: '{url}'}}\n")
    message = str(caught.value)
    assert words in message
    assert f"store.{field}" in message
    assert "hunter" not in message
    assert "\n" not in message


# ── values ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (5, 5),
        (0.5, 0.5),
        ("5", 5),
        ("500ms", 0.5),
        ("600s", 600),
        ("10m", 600),
        ("1h", 3600),
        ("30d", 2592000),
        ("1.5h", 5400),
        (" 2 m ", 120),
    ],
)
def test_durations(written: object, seconds: float):
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("512KiB", 524_288),
        ("1MiB", 1_048_576),
        ("1MB", 1_000_000),
        ("10GiB", 10_737_418_240),
        ("0.5 MiB", 524_288),
        ("10B", 10),
        ("1kB", 1000),
    ],
)
def test_sizes(written: object, size: int):
    assert parse_size(written) == size


@pytest.mark.parametrize(("written", "count"), [(4, 4), ("4", 4), ("33e6", 33_000_000), (2.0, 2)])
def test_counts(written: object, count: int):
    assert parse_count(written) == count


@each_row("parse", [parse_duration, parse_size, parse_count])
@each_row(
    "written",
    [0, -1, True, None, "", "x", "nan", "inf", "9" * 400, float("nan"), float("inf"), [1], "1 2"],
)
def test_an_invalid_amount_is_refused(parse, written: object):
    with pytest.raises(ValueError, match=r"number"):
        parse(written)


@pytest.mark.parametrize("written", ["127.0.0.1:8080", "0.0.0.0:80", "localhost:0", "[::1]:8080"])
def test_an_address_is_printed_as_it_was_written(written: str):
    assert str(parse_address(written)) == written


@pytest.mark.parametrize("written", ["", ":8080", "8080", "host:", "a b:1", "[::1]", "h:-1", "/:1"])
def test_an_invalid_address_is_refused(written: str):
    with pytest.raises(ValueError, match="host:port"):
        parse_address(written)


# ── errors ──────────────────────────────────────────────────────────────────────────────────


@each_row("path", BAD_FILES, ids=lambda path: path.stem)
def test_each_broken_file_is_refused_with_its_message(path: Path):
    """The first lines of each file are its message, with the file's plain name."""
    marks = [line for line in path.read_text().splitlines() if line.startswith("# expect: ")]
    with pytest.raises(ConfigError) as fault:
        load_settings(path, {})
    expected = "\n".join(mark.removeprefix("# expect: ") for mark in marks)
    assert str(fault.value).replace(str(path), "gateway.yaml") == expected
    assert "hunter2" not in expected


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "gateway.yaml").write_bytes(b"name: \xff\n")
    for path in (tmp_path / "gateway.yaml", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match=rf"^{path}: cannot be read: "):
            load_settings(path, {})


# ── upstream ─────────────────────────────────────────────────────────────────────


def test_a_header_is_sent_under_its_name_unless_it_is_empty(tmp_path: Path):
    text = (
        "upstream:\n"
        "  headers:\n"
        "    OpenAI-Organization: ' ${ORGANIZATION} '\n"
        "    OpenAI-Project: ${PROJECT:-}\n"
        "    X-Nothing:\n"
    )
    headers = load(tmp_path, text, ORGANIZATION="org one").upstream.headers
    assert headers == {"OpenAI-Organization": SecretStr("org one")}


def test_authorization_is_authorization_however_it_is_written(tmp_path: Path):
    settings = load(tmp_path, "upstream: {auth_header: authorization}\n")
    assert settings.upstream.auth_header == "Authorization"


@pytest.mark.parametrize(
    "written",
    ["http://proxy:3128", "http://proxy", "http://ann:p%40ss@[::1]:8080/", "http://ann@proxy"],
)
def test_a_proxy_is_an_http_address_with_or_without_credentials(written: str):
    assert parse_proxy(written) == parse_proxy(SecretStr(written)) == written


@pytest.mark.parametrize(
    "written",
    [
        *("proxy:3128", "https://proxy:3128", "socks5://proxy", "http://", "http://h:1/path"),
        *("http://h?query", "http://a%3Ab:c@h", "http://ä:b@h", "http://a:%C3%A4@h", 3128, [1]),
    ],
)
def test_an_invalid_proxy_is_refused(written: object):
    with pytest.raises(ValueError, match=r"http://host:3128|a user without a colon"):
        parse_proxy(written)


def test_a_ca_file_must_contain_certificates_when_the_gateway_starts(tmp_path: Path):
    """Its path is relative to the working directory, like that of the data folder."""
    authority = ROOT / "tests" / "tls" / "authority.pem"
    key_alone = ROOT / "tests" / "tls" / "server-key.pem"
    (tmp_path / "empty.pem").touch()
    good = load(tmp_path, f"upstream: {{ca_file: '{authority}'}}\n")
    assert good.upstream.ca_file == authority
    for path in (tmp_path / "empty.pem", key_alone, ROOT / "README.md", tmp_path):
        with pytest.raises(ConfigError) as fault:
            load(tmp_path, f"upstream: {{ca_file: '{path}'}}\n")
        assert str(fault.value).startswith(
            f"{tmp_path / 'gateway.yaml'}: upstream.ca_file: '{path}' is not valid; "
            "expected a file with certificates in PEM"
        )
        assert "\n" not in str(fault.value)


@pytest.mark.parametrize(("written", "count"), [(0, 0), ("0", 0), (5, 5), ("1e2", 100)])
def test_counts_that_may_be_zero(written: object, count: int):
    assert parse_count_or_zero(written) == count


@pytest.mark.parametrize("written", [-1, 1.5, True, None, "", "x", "nan", "inf", [1]])
def test_an_invalid_count_or_zero_is_refused(written: object):
    with pytest.raises(ValueError, match="a whole number, 0 for none"):
        parse_count_or_zero(written)


# ── finding the files ───────────────────────────────────────────────────────────────────────


def test_the_shipped_files_are_found_from_an_empty_folder(tmp_path: Path):
    files = find_config(None, tmp_path)
    assert files.gateway == SHIPPED
    assert files.models == SHIPPED.with_name("models.yaml")


def test_the_config_folder_of_the_working_directory_comes_first(tmp_path: Path):
    """A file that is missing there is taken from the package."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.yaml").touch()
    files = find_config(None, tmp_path)
    assert files.gateway == tmp_path / "config" / "gateway.yaml"
    assert files.models == SHIPPED.with_name("models.yaml")


def test_the_other_file_is_found_beside_a_named_one(tmp_path: Path):
    named = tmp_path / "mine.yaml"
    named.touch()
    (tmp_path / "models.yaml").touch()
    files = find_config(named, Path("/nowhere"))
    assert (files.gateway, files.models) == (named, tmp_path / "models.yaml")


def test_a_named_file_that_is_missing_is_not_replaced(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: there is no such file"):
        find_config(tmp_path / "nothing.yaml", tmp_path)
