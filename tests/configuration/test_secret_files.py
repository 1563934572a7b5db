"""`${file:/path}`: secrets from files, in any value of either configuration file."""

import os
import re
import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.catalog import CatalogError
from gateway.configuration.effective import effective_settings
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import ConfigFiles, Configuration, load_settings, read_config
from gateway.configuration.secret_files import MAX_BYTES
from gateway.configuration.settings import Settings

ROOT = Path(__file__).parents[2]
KEY = "sk-hunter2-hunter2"


def write(tmp_path: Path, content: str | bytes, name: str = "secret") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    return load_settings(path, environ)


def refusal(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return str(caught.value)


# ── what a file may be ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("word\n", "word"),
        ("word", "word"),
        ("word\r\n", "word"),
        ("word\n\n", "word\n"),
        ("  word \n", "  word "),
        ("${HOME} ${file:/etc/hostname}\n", "${HOME} ${file:/etc/hostname}"),
        ("größer", "größer"),
        ("x" * MAX_BYTES, "x" * MAX_BYTES),
    ],
    ids=["newline", "none", "crlf", "two", "spaces", "reference", "utf-8", "largest"],
)
def test_a_file_is_a_value_without_its_last_newline(tmp_path: Path, content: str, value: str):
    secret = write(tmp_path, content)
    path = write(tmp_path, f"a: [{{b: '${{file:{secret}}}'}}]\n", "any.yaml")
    assert read_config(path, {}) == {"a": [{"b": value}]}


def test_a_link_to_a_file_is_followed(tmp_path: Path):
    """As Kubernetes mounts secrets."""
    (tmp_path / "link").symlink_to(write(tmp_path, KEY))
    settings = load(tmp_path, f"upstream:\n  api_key: ${{file:{tmp_path}/link}}\n")
    assert settings.upstream.api_key == SecretStr(KEY)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


UNUSABLE = {
    "missing": (lambda path: None, "cannot be read: No such file or directory."),
    "folder": (Path.mkdir, "is a folder; expected a file."),
    "pipe": (make_pipe, "is not a regular file."),
    "socket": (make_socket, "cannot be read: No such device or address."),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file."),
    "loop": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic"),
    "too-large": (lambda path: path.write_bytes(b"x" * (MAX_BYTES + 1)), "has more than 64 KiB."),
    "not-utf-8": (lambda path: path.write_bytes(b"\xffhunter2"), "is not UTF-8 text."),
    "empty": (Path.touch, "is empty."),
    "newline-alone": (lambda path: path.write_text("\n"), "is empty."),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_file_is_refused_in_a_line_that_names_file_key_and_path(
    tmp_path: Path, kind: str
):
    make, problem = UNUSABLE[kind]
    path = tmp_path / "secret"
    make(path)
    message = refusal(tmp_path, f"server:\n  admin_token: a${{file:{path}}}\n")
    where = f"{tmp_path / 'gateway.yaml'}: server.admin_token: the file {path} "
    assert message.startswith(where + problem)
    assert "\n" not in message
    assert "hunter2" not in message


def test_every_unusable_file_is_named_with_the_other_faults(tmp_path: Path):
    text = (
        "server: {admin_token: '${file:/none/a}', tls: {cert: '${file:/none/b}'}}\n"
        "upstream: {api_key: '${KEY}', url: http://x}\n"
    )
    lines = refusal(tmp_path, text).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "server.admin_token",
        "server.tls.cert",
        "upstream.api_key",
        "unknown key 'upstream.url'. Did you mean 'upstream.base_url'?",
    ]


# ── the syntax ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "environ"),
    [
        ("${file:FOLDER/secret}", {}),
        ("${file:${WHERE}/secret}", {"WHERE": "FOLDER"}),
        ("${file:${WHERE:-FOLDER}/secret}", {}),
        ("${KEY:-${file:FOLDER/secret}}", {}),
        ("${KEY:-${file:FOLDER/secret}}", {"KEY": ""}),
        ("${KEY:-${file:/none}}", {"KEY": KEY}),
        ("${A:-${B:-${file:FOLDER/secret}}}", {}),
        ("sk-${file:FOLDER/half}-hunter2", {}),
    ],
)
def test_references_stand_alone_in_a_text_and_in_each_other(
    tmp_path: Path, written: str, environ: dict[str, str]
):
    """The file of a default that is not needed is not read."""
    write(tmp_path, KEY + "\n")
    write(tmp_path, "hunter2\n", "half")
    given = {name: value.replace("FOLDER", str(tmp_path)) for name, value in environ.items()}
    text = f"upstream: {{api_key: '{written.replace('FOLDER', str(tmp_path))}'}}\n"
    assert load(tmp_path, text, **given).upstream.api_key == SecretStr(KEY)


@pytest.mark.parametrize("written", ["${file:}", "${file:/x", "${A:-${B}", "${file:${A-B}}", "${}"])
def test_a_malformed_reference_is_refused(tmp_path: Path, written: str):
    message = refusal(tmp_path, f"upstream: {{name: '{written}'}}\n")
    assert message.endswith("expected ${NAME}, ${NAME:-default} or ${file:/path} after $.")


def test_a_brace_outside_of_a_reference_is_a_brace(tmp_path: Path):
    path = write(tmp_path, "a: 'x}${A:-b}{}'\n", "any.yaml")
    assert read_config(path, {}) == {"a": "x}b{}"}


# ── passwords in URLs ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("password", "encoded"),
    [
        ("plain", "plain"),
        ("p@ss/w#rd?", "p%40ss%2Fw%23rd%3F"),
        ("100%", "100%25"),
        ("is%40encoded", "is%40encoded"),
        ("a b[ü]", "a%20b%5B%C3%BC%5D"),
        ("a:b", "a:b"),
    ],
)
@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_password_in_a_url_is_percent_encoded_where_it_must(
    tmp_path: Path, password: str, encoded: str, source: str
):
    reference = f"${{file:{write(tmp_path, password)}}}" if source == "file" else "${PASSWORD}"
    url = f"redis://ann:{reference}@redis:6379/0"
    settings = load(tmp_path, f"store: {{redis_url: '{url}'}}\n", PASSWORD=password)
    assert settings.store.redis_url == SecretStr(f"redis://ann:{encoded}@redis:6379/0")


def test_other_parts_of_a_url_and_whole_urls_are_not_encoded(tmp_path: Path):
    write(tmp_path, "redis://:p%2F@h:1/0?x=a@b", "url")
    path = write(
        tmp_path,
        f"a: ['${{file:{tmp_path}/url}}', 'http://${{HOST}}/${{PATH}}', 'a/${{AT}}@b', "
        "'http://h/${AT}@b']\n",
        "any.yaml",
    )
    read = read_config(path, {"HOST": "h[1]", "PATH": "x/y", "AT": "c/d"})
    assert read["a"] == [
        "redis://:p%2F@h:1/0?x=a@b",
        "http://h[1]/x/y",
        "a/c/d@b",
        "http://h/c/d@b",
    ]


# ── nothing shows them ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "server: {listen: REF}",
        "server: {trusted_proxies: REF}",
        "server: {cors_origins: REF}",
        "server: {trusted_proxies: ['10.0.0.0/8', REF]}",
        "rehost: {allow: ['x:REF']}",
        "upstream: {auth_header: REF, headers: {HUNTER2: x}}",
        "cache: {ttl: REF}",
        "validation: REF",
        "upstream: {base_url: REF}",
        "billing: {time_zone: REF}",
        "billing: {metric_labels: ['x:REF']}",
        "upstream: {ca_file: REF}",
    ],
)
@pytest.mark.parametrize(
    "content", ["hunter2 hunter2\n", "hunter2\n\n", "hunter2'\"\nhunter2", ",hunter2/,/,", "r2/"]
)
def test_no_message_shows_what_a_file_contains(tmp_path: Path, text: str, content: str):
    """Neither as it is, nor the part of it that a parser refused."""
    secret = write(tmp_path, content)
    message = refusal(tmp_path, text.replace("REF", f"'${{file:{secret}}}'").replace("''", "'"))
    assert "r2" not in message.replace(str(secret), "")
    assert "\n" not in message


def test_models_yaml_reads_files_too_and_its_faults_do_not_show_them(tmp_path: Path):
    model = write(tmp_path, "dall-e-3\n")
    text = (ROOT / "config" / "models.yaml").read_text()
    (written,) = re.findall(r"(?m)^default_gpt_model:.*$", text)
    models = tmp_path / "models.yaml"
    models.write_text(text.replace(written, f"default_gpt_model: ${{file:{model}}}"))
    configuration = Configuration(ConfigFiles(models, models), {})
    assert configuration.read_policy().catalog.default_gpt_model == "dall-e-3"
    for content in ("hunter2-hunter2", "hunter2\n\n", "hunter2\nhunter2"):
        model.write_text(content)
        with pytest.raises(CatalogError) as caught:
            configuration.read_policy()
        assert str(models) in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_config_show_masks_secrets_and_everything_from_files(tmp_path: Path):
    secret = write(tmp_path, "4\n")
    text = (
        f"workers: {{count: '${{file:{secret}}}'}}\n"
        "server: {listen: '${LISTEN}', admin_token: hunter2-hunter2-hunter2, max_head: 1KiB,\n"
        "  metrics_token: '${EMPTY:-}', signing_keys: 'a:hunter2-hunter2-hunter2'}\n"
        "store: {redis_url: 'redis://:hunter2@h'}\n"
        "upstream: {headers: {X-Entry: '${ENTRY}'}}\n"
    )
    path = write(tmp_path, text, "gateway.yaml")
    environ = {"LISTEN": "[::1]:81", "ENTRY": "hunter2"}
    configuration = Configuration(ConfigFiles(path, path), environ)
    shown = {
        s.key: (s.value, s.source, s.origin)
        for s in effective_settings(
            configuration.read_settings(), configuration.read_values(), file=path
        )
    }
    assert shown["workers.count"] == ("***", "secret file", str(secret))
    assert shown["server.listen"] == ("[::1]:81", "environment", "LISTEN")
    assert shown["server.admin_token"] == ("***", "file", str(path))
    assert shown["server.max_head"] == (1024, "file", str(path))
    assert shown["server.metrics_token"] == (None, "default", None)
    assert shown["server.signing_keys"] == shown["store.redis_url"] == ("***", "file", str(path))
    assert shown["upstream.headers.X-Entry"] == ("***", "environment", "ENTRY")
    assert shown["cache.ttl"] == (2_592_000.0, "default", None)
    assert "hunter2" not in str(shown)


def test_a_file_is_read_again_with_the_settings(tmp_path: Path):
    """As a rolling restart does."""
    secret = write(tmp_path, KEY)
    text = f"upstream: {{api_key: '${{file:{secret}}}'}}\n"
    first = load(tmp_path, text)
    secret.write_text("sk-another")
    second = load(tmp_path, text)
    assert first.upstream.api_key == SecretStr(KEY)
    assert second.upstream.api_key == SecretStr("sk-another")


def test_a_path_of_the_home_folder_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "")
    text = "store: {data_dir: ~no-such-user/data}\nserver: {tls: {cert: ~no-such-user/x}}\n"
    message = refusal(tmp_path, text)
    assert "store.data_dir: '~no-such-user/data' is not valid" in message
    assert message.count("has no home folder") == 2
