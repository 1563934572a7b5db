"""`gateway backup` and `gateway restore`: keys, teams, limits and the audit in a file."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import click

from gateway.access import sealed
from gateway.access.audit import SPACE, Audit
from gateway.access.backup import (
    MAX_LINE_BYTES,
    MIN_PASSPHRASE,
    BadBackup,
    Contents,
    Place,
    Restored,
    RestoreRefused,
    audit_records,
    read_contents,
    restore_audit,
    restore_signing_keys,
    write_backup,
)
from gateway.access.backup import restore as restore_records
from gateway.cli.options import command_actor, config_option, find_configuration
from gateway.cli.store import open_command_store
from gateway.configuration.secret_files import UnreadableFile, read_secret_file
from gateway.store.private_files import PRIVATE_FILE
from gateway.store.protocol import Store

NOT_INCLUDED: Final = (
    "Counters, the ledger and images are not in a backup: what was spent in the current windows "
    "counts from the store alone."
)

_passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="A file with the passphrase of the signing keys. Without it they are left out.",
)


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@_passphrase_option
@config_option
def backup(file: Path, passphrase_file: Path | None, config: Path | None) -> None:
    """Writes keys, teams, limits and the audit to FILE, which only its owner can read.

    It has no secret of a key, only hashes. The keys that sign links are in it with
    --passphrase-file, encrypted.
    """
    passphrase = _read_passphrase(passphrase_file)
    unreadable: list[Place] = []
    counts = asyncio.run(_back_up(config, file, passphrase, unreadable))
    for space, name in unreadable:
        click.echo(f"Left out, because it is unreadable: {name} in {space}.", err=True)
    click.echo(f"{file}: {_show_counts(counts)}.")
    if counts.signing_keys is None:
        reason = "the store has none" if passphrase is not None else "there is no --passphrase-file"
        click.echo(f"Without signing keys: {reason}.", err=True)


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Replace the keys, teams and limits of the store.")
@_passphrase_option
@config_option
def restore(file: Path, replace: bool, passphrase_file: Path | None, config: Path | None) -> None:
    """Makes keys, teams and limits those of FILE, and adds its audit.

    A store that has some needs --replace: keys that are not in FILE stop working. Keys that the
    store knows as revoked stay revoked. If it is interrupted, run it again with --replace.
    """
    passphrase = _read_passphrase(passphrase_file)
    contents, restored, signing = asyncio.run(
        _restore(config, file, passphrase, is_replacing=replace)
    )
    written_at = datetime.fromtimestamp(contents.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    click.echo(
        f"Restored the backup of {written_at}. Keys: {restored.keys}, teams: {restored.teams}."
    )
    if restored.removed_keys:
        click.echo(
            f"Keys of the store that are not in the backup, removed: {restored.removed_keys}."
        )
    if restored.still_revoked:
        click.echo(f"Keys that the store knows as revoked, not restored: {restored.still_revoked}.")
    if signing is not None:
        click.echo(f"Signing keys added: {signing}.")
    elif contents.signing_keys is not None:
        click.echo("Signing keys are not restored: that needs --passphrase-file.", err=True)
    click.echo(NOT_INCLUDED, err=True)


def _read_passphrase(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        passphrase = read_secret_file(str(file))
    except UnreadableFile as error:
        raise click.ClickException(f"--passphrase-file {file} {error}.") from None
    if len(passphrase) < MIN_PASSPHRASE:
        raise click.ClickException(
            f"--passphrase-file {file}: a passphrase has at least {MIN_PASSPHRASE} characters."
        )
    return passphrase


def _show_counts(contents: Contents) -> str:
    counts = contents.counts
    events = counts.get(SPACE, 0)
    return f"keys: {counts.get('keys', 0)}, teams: {counts.get('teams', 0)}, events: {events}"


# ── files ───────────────────────────────────────────────────────────────────────────────────


async def _back_up(
    config: Path | None, file: Path, passphrase: str | None, unreadable: list[Place]
) -> Contents:
    """Writes the file, reads it again, and returns what it has."""

    def seal(data: bytes, context: bytes) -> dict[str, object]:
        return sealed.seal(data, passphrase or "", context=context)

    async with open_command_store(find_configuration(config)) as store:
        with _new_file(file) as out:
            lines = write_backup(
                store,
                now=time.time(),
                seal=None if passphrase is None else seal,
                unreadable=unreadable,
            )
            async for line in lines:
                out.write(line)
    with file.open("rb") as written:
        return _read_contents(file, written)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that only its owner can read; it is deleted if it is not completed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, PRIVATE_FILE)
    except FileExistsError:
        raise click.ClickException(
            f"{path} exists already. Choose another name, or remove it."
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, PRIVATE_FILE)  # a umask may have taken rights from the owner
            yield file
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines from the start; a longer one than allowed is cut, and thereby refused."""
    file.seek(0)
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def _read_contents(path: Path, file: BinaryIO) -> Contents:
    try:
        return read_contents(_lines(file))
    except BadBackup as error:
        raise click.ClickException(f"{path} cannot be restored: {error}.") from None


async def _restore(
    config: Path | None, file: Path, passphrase: str | None, *, is_replacing: bool
) -> tuple[Contents, Restored, int | None]:
    """Restores the file; also the number of new signing keys, None if they are left out."""
    async with open_command_store(find_configuration(config)) as store:
        with file.open("rb") as lines:
            # Read and opened wholly before anything is written.
            contents = _read_contents(file, lines)
            signing_keys = _unseal(file, contents, passphrase)
            try:
                restored = await restore_records(
                    store, contents, now=time.time(), replace=is_replacing
                )
                added = None
                if signing_keys is not None:
                    added = await restore_signing_keys(store, signing_keys)
                await restore_audit(store, audit_records(_lines(lines)))
            except RestoreRefused as error:
                raise click.ClickException(str(error)) from None
        await _note(store, contents, restored, added)
        return contents, restored, added


def _unseal(file: Path, contents: Contents, passphrase: str | None) -> bytes | None:
    if passphrase is None:
        return None
    if contents.signing_keys is None:
        raise click.ClickException(f"{file} has no signing keys; leave --passphrase-file out.")
    try:
        return sealed.unseal(contents.signing_keys, passphrase, context=contents.context)
    except BadBackup as error:
        raise click.ClickException(f"{file} cannot be restored: {error}.") from None


async def _note(
    store: Store, contents: Contents, restored: Restored, signing_keys: int | None
) -> None:
    after = {
        **restored.public(),
        "signing_keys": signing_keys or 0,
        "backup_of": contents.created_at,
    }
    await Audit(store).note(command_actor(), "backup.restore", "store", after)
