"""`gateway backup` and `gateway restore`, on both stores."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from gateway.access.backup import BadBackup, read_contents
from gateway.access.key_spaces import KEYS, NAMES, SECRETS, Credential
from gateway.access.keys import Keys
from gateway.access.signing import META, RECORD, StoredKey, decode_keys, encode_keys
from gateway.cli.main import cli
from gateway.errors import IncorrectKey
from gateway.process.bootstrap import prepare
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.protocol import Store
from gateway.wiring.stores import open_store
from tests.gateways import make_settings
from tests.other_users import needs_root
from tests.rows import each_row

ROOT = Path(__file__).parents[2]

PASSPHRASE = "a passphrase of tests"


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


class Site:
    """A gateway's store, and commands on it."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.settings = make_settings(folder, "http://127.0.0.1:9/v1", url)
        self.url, self.folder = url, folder
        prepare(self.settings)

    def run(self, *words: str | Path) -> Result:
        env = {"GATEWAY_DATA_DIR": str(self.folder), "GATEWAY_REDIS_URL": self.url or ""}
        return CliRunner(env=env).invoke(cli, [str(word) for word in words])

    def done(self, *words: str | Path) -> str:
        result = self.run(*words)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def read(self, use: Callable[[Store], Any]) -> Any:
        async def run() -> Any:
            async with open_store(self.settings) as (store, _):
                return await use(store)

        return asyncio.run(run())

    def works(self, secret: str) -> bool:
        async def use(store: Store) -> bool:
            try:
                await Keys(store).authenticate(Credential.of(secret))
            except IncorrectKey:
                return False
            return True

        return bool(self.read(use))

    def listed(self) -> list[dict[str, Any]]:
        rows = json.loads(self.done("keys", "list", "--format", "json"))
        return [{name: row[name] for name in row if name != "last_used_at"} for row in rows]

    def actions(self) -> list[str]:
        return [row["action"] for row in json.loads(self.done("audit", "--format", "json"))]


@pytest.fixture
def first(tmp_path: Path, store_url: str | None) -> Site:
    """A store with keys, a team, limits and raises."""
    site = Site(tmp_path / "first", store_url)

    async def fill(store: Store) -> None:
        records = {
            ("teams", "art"): b'{"limits":{"usd_per_month":5}}',
            ("access", "everyone"): b'{"limits":{"usd_per_day":9}}',
            ("access", "generation"): b"0",
            ("raises", "team:art"): b'[{"limit":"usd_per_month","amount":"20"}]',
        }
        writes = (Write(*place, value, expected=None) for place, value in records.items())
        await store.execute([CompareAndSet(tuple(writes))])

    site.read(fill)
    return site


@pytest.fixture
def second(tmp_path: Path) -> Site:
    """An empty embedded store: a backup moves between kinds of stores."""
    return Site(tmp_path / "second", None)


def add(place: Site, name: str, *words: str) -> str:
    return place.done("keys", "add", name, *words).strip()


def test_what_is_backed_up_is_restored_into_an_empty_store(
    first: Site, second: Site, tmp_path: Path
):
    kept = add(first, "alice", "--team", "art", "--label", "cost_center=4711")
    gone = add(first, "bob")
    first.done("keys", "revoke", "bob")
    rotated = first.done("keys", "rotate", "alice", "--overlap", "24h").strip()
    file = tmp_path / "backup"
    assert "keys: 1, teams: 1, events: 4" in first.done("backup", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    restored = second.run("restore", file)
    assert restored.exit_code == 0, restored.stderr
    assert "Keys: 1, teams: 1." in restored.stdout
    assert "Counters, the ledger and images are not in a backup" in restored.stderr
    assert second.listed() == first.listed()
    assert [second.works(secret) for secret in (kept, rotated, gone)] == [True, True, False]
    assert second.actions() == ["backup.restore", *first.actions()]

    async def read(store: Store) -> list[bytes | None]:
        places = ("teams", "art"), ("access", "everyone"), ("raises", "team:art")
        return await store.execute([Get(*place) for place in places])

    assert second.read(read) == first.read(read)
    assert second.run("keys", "add", "alice").exit_code == 1  # its name is taken


def test_no_secret_is_in_a_backup(first: Site, tmp_path: Path):
    secrets = [add(first, "alice"), first.done("keys", "rotate", "alice").strip()]
    (tmp_path / "pass").write_text(PASSPHRASE)
    first.done("backup", tmp_path / "backup", "--passphrase-file", tmp_path / "pass")
    text = (tmp_path / "backup").read_text()
    for secret in (*secrets, PASSPHRASE):
        assert secret not in text
    for key in signing_keys(first):
        assert key.secret not in text


def test_an_occupied_store_needs_replace_and_then_has_the_keys_of_the_backup(
    first: Site, second: Site, tmp_path: Path
):
    alice, carol = add(first, "alice"), add(first, "carol")
    first.done("backup", tmp_path / "backup")
    other, same_name = add(second, "dave"), add(second, "alice")
    before = second.listed()
    refused = second.run("restore", tmp_path / "backup")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "The store has 2 keys already. With --replace" in refused.stderr
    assert second.listed() == before
    replaced = second.run("restore", tmp_path / "backup", "--replace")
    assert "removed: 2" in replaced.stdout
    assert second.listed() == first.listed()
    working = [second.works(secret) for secret in (alice, carol, other, same_name)]
    assert working == [True, True, False, False]

    async def index(store: Store) -> list[bytes | None]:
        return await store.execute([Get(NAMES, "dave"), Get(NAMES, "alice")])

    assert second.read(index) == [None, first.listed()[0]["id"].encode()]
    add(second, "dave")


def test_a_restore_can_be_repeated_and_undoes_later_changes_but_no_revocation(
    first: Site, tmp_path: Path
):
    alice, bob = add(first, "alice", "--team", "art"), add(first, "bob")
    first.done("backup", tmp_path / "backup")
    first.done("keys", "set", "alice", "--team", "music")
    first.done("keys", "revoke", "bob")
    later = add(first, "later")
    for _ in range(2):
        restored = first.run("restore", tmp_path / "backup", "--replace")
        assert restored.exit_code == 0, restored.stderr
        assert "revoked, not restored: 1" in restored.stdout
    assert [first.works(secret) for secret in (alice, bob, later)] == [True, False, False]
    states = {key["name"]: (key["state"], key.get("team")) for key in first.listed()}
    assert states == {"alice": ("active", "art"), "bob": ("revoked", None)}

    async def generation(store: Store) -> bytes:
        (found,) = await store.execute([Get("access", "generation")])
        return bytes(found)

    assert first.read(generation) != b"0"


def test_many_keys_are_restored_in_several_steps(first: Site, second: Site, tmp_path: Path):
    async def fill(store: Store) -> None:
        for number in range(300):
            record = {
                "id": f"key_{number}",
                "name": f"k{number}",
                "prefix": "gk-aaa",
                "secrets": [{"sha256": hashlib.sha256(f"gk-{number}".encode()).hexdigest()}],
                "created_at": number,
                "of_a_newer_gateway": [number],
            }
            value = orjson.dumps(record)
            write = Write(KEYS, record["id"], value, expected=None)
            await store.execute([CompareAndSet((write,))])

    first.read(fill)
    first.done("backup", tmp_path / "backup")
    second.done("restore", tmp_path / "backup")
    assert second.listed() == first.listed()
    assert len(second.listed()) == 300
    assert second.works("gk-299")

    async def record(store: Store) -> bytes:
        (found,) = await store.execute([Get(KEYS, "key_7")])
        return bytes(found)

    assert second.read(record) == first.read(record)
    assert json.loads(second.read(record))["of_a_newer_gateway"] == [7]


# ── signing keys ────────────────────────────────────────────────────────────────────────────


def signing_keys(place: Site) -> list[StoredKey]:
    async def read(store: Store) -> list[StoredKey]:
        (found,) = await store.execute([Get(META, RECORD)])
        return [] if found is None else decode_keys(found)

    return list(place.read(read))


def sign_with(place: Site, *keys: StoredKey) -> None:
    async def write(store: Store) -> None:
        (old,) = await store.execute([Get(META, RECORD)])
        change = Write(META, RECORD, encode_keys(keys), expected=old)
        await store.execute([CompareAndSet((change,))])

    place.read(write)


OLD = StoredKey("0123456789ab", "ab" * 32, 1_700_000_000.0)
NEW = StoredKey("ba9876543210", "cd" * 32, 1_800_000_000.0)


def test_signing_keys_are_added_with_their_passphrase_only(
    first: Site, second: Site, tmp_path: Path
):
    sign_with(first, OLD)
    sign_with(second, NEW)
    passphrase, wrong = tmp_path / "pass", tmp_path / "wrong"
    passphrase.write_text(f"{PASSPHRASE}\n")
    wrong.write_text("another passphrase")
    file, plain = tmp_path / "backup", tmp_path / "plain"
    first.done("backup", file, "--passphrase-file", passphrase)
    assert (
        "Without signing keys: there is no --passphrase-file" in first.run("backup", plain).stderr
    )

    refused = second.run("restore", file, "--passphrase-file", wrong)
    assert (refused.exit_code, signing_keys(second)) == (1, [NEW])
    assert "the passphrase is not that of its signing keys" in refused.stderr
    none = second.run("restore", plain, "--passphrase-file", passphrase)
    assert (none.exit_code, "has no signing keys" in none.stderr) == (1, True)
    assert second.actions() == []

    left_out = second.run("restore", file)
    assert "Signing keys are not restored: that needs --passphrase-file." in left_out.stderr
    assert signing_keys(second) == [NEW]
    added = second.run("restore", file, "--replace", "--passphrase-file", passphrase)
    assert "Signing keys added: 1." in added.stdout
    assert signing_keys(second) == [NEW, OLD]  # the newest signs


def test_a_passphrase_file_must_have_a_passphrase(first: Site, tmp_path: Path):
    short = tmp_path / "short"
    short.write_text("short")
    for file, message in ((short, "at least 16 characters"), (tmp_path / "none", "cannot be read")):
        refused = first.run("backup", tmp_path / "backup", "--passphrase-file", file)
        assert (refused.exit_code, message in refused.stderr) == (1, True), refused.stderr
    assert not (tmp_path / "backup").exists()


# ── files ───────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_exists_is_not_replaced(first: Site, tmp_path: Path):
    (tmp_path / "backup").write_text("important")
    refused = first.run("backup", tmp_path / "backup")
    assert (refused.exit_code, "exists already" in refused.stderr) == (1, True)
    assert (tmp_path / "backup").read_text() == "important"
    nowhere = first.run("backup", tmp_path / "none" / "backup")
    assert (nowhere.exit_code, "No such file" in nowhere.stderr) == (1, True)


def test_a_damaged_record_is_left_out_and_named(first: Site, second: Site, tmp_path: Path):
    add(first, "alice")

    async def damage(store: Store) -> None:
        write = Write(KEYS, "key_bad", b"\xff{", expected=None)
        await store.execute([CompareAndSet((write,))])

    first.read(damage)
    result = first.run("backup", tmp_path / "backup")
    assert result.exit_code == 0
    assert "Left out, because it is unreadable: key_bad in keys." in result.stderr
    second.done("restore", tmp_path / "backup")
    assert [key["name"] for key in second.listed()] == ["alice"]


def made(*records: dict[str, Any], version: int = 1) -> list[bytes]:
    """A backup of these records with a right end."""
    head = {"format": "image-gateway-backup", "version": version, "id": "1", "created_at": 1}
    lines = [orjson.dumps(line) + b"\n" for line in (head, *records)]
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    end = {"end": True, "records": len(records), "sha256": digest}
    return [*lines, orjson.dumps(end) + b"\n"]


TEAM = {"space": "teams", "name": "art", "value": "{}"}
WHOLE = made(TEAM, {**TEAM, "name": "music"})
EVENT = orjson.dumps({"space": "audit:2026-11", "name": "1", "value": "of nobody"}) + b"\n"

BAD: list[tuple[str, list[bytes], str]] = [
    ("empty", [], "it is empty"),
    ("another file", [b"listen: 127.0.0.1\n"], "line 1 is none of a backup"),
    ("other JSON", [b"{}\n"], "no backup of this gateway"),
    ("a newer version", made(version=2), "version 2"),
    ("cut", WHOLE[:-1], "its end is missing"),
    ("cut in a line", [*WHOLE[:-1], WHOLE[-1][:9]], "line 4 is none of a backup"),
    ("a missing record", [*WHOLE[:2], WHOLE[-1]], "its hash is another one"),
    ("a changed record", [WHOLE[0], WHOLE[1].replace(b"art", b"eve"), *WHOLE[2:]], "its hash"),
    ("an unknown space", made({**TEAM, "space": "meta"}), "line 2 is unreadable"),
    ("a secret's index", made({**TEAM, "space": SECRETS}), "line 2 is unreadable"),
    ("a generation", made({**TEAM, "space": "access", "name": "generation"}), "line 2"),
    ("a key without fields", made({**TEAM, "space": KEYS}), "line 2 is unreadable"),
    ("a team that is a list", made({**TEAM, "value": "[]"}), "line 2 is unreadable"),
    ("no value", made({"space": "teams", "name": "art"}), "line 2 is unreadable"),
    ("a list", [WHOLE[0], b"[1]\n"], "line 2 is none of a backup"),
    ("an event after its end", [*WHOLE, EVENT], "line 5 is after its end"),
]


@each_row(("lines", "message"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_a_file_that_is_no_whole_backup_is_refused(lines: list[bytes], message: str):
    with pytest.raises(BadBackup) as refused:
        read_contents(lines)
    assert message in str(refused.value)


def test_a_refused_file_changes_nothing(first: Site, tmp_path: Path):
    alice = add(first, "alice")
    (tmp_path / "cut").write_bytes(b"".join(WHOLE[:-1]))
    refused = first.run("restore", tmp_path / "cut", "--replace")
    assert (refused.exit_code, "its end is missing" in refused.stderr) == (1, True)
    assert first.works(alice)
    assert "No such file" in first.run("restore", tmp_path / "none").stderr


@needs_root
def test_a_full_disk_is_named_with_the_file_and_leaves_none(tmp_path: Path) -> None:
    site = Site(tmp_path / "data", None)
    disk = tmp_path / "disk"
    disk.mkdir()
    # The one page of this disk is taken before the backup begins.
    script = (
        f"mount -t tmpfs -o size=4k tmpfs {disk} && head -c 4096 /dev/zero > {disk}/other"
        f" && {sys.executable} -m gateway backup {disk}/backup; ls {disk}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "GATEWAY_DATA_DIR": str(site.folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"Error: {disk}/backup cannot be written: No space left on device."
    assert done.stderr.splitlines()[-1] == message
    assert done.stdout.split() == ["other"]
