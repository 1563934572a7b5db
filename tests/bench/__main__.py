"""`make bench`: runs the servers, measures each of them and prints the tables.

    python -m tests.bench [--short] [--seconds 5] [--rounds 1] [--only TEXT] [--entries 50000]
        [--peers litellm,portkey] [--curves] [--json FILE [--merge]]

With several rounds the median counts. With `--json` the results so far are written after each part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.load import Failed
from tests.bench.machine import describe_machine, describe_versions
from tests.bench.peers import check_peers
from tests.bench.processes import check_tools
from tests.bench.results import Part, Run, as_document, parse_document
from tests.bench.run import Options, run_parts
from tests.bench.servers import open_setups
from tests.bench.table import print_run

SECONDS, SHORT_SECONDS = 5, 2
ENTRIES = 50_000
"""A million takes minutes to write."""


def main() -> int:
    """Returns the exit status: 1 if a part could not be measured. Missed floors do not count."""
    words = _parser().parse_args()
    options = _options(words)
    try:
        options.check()
        check_tools()
        check_peers(options.peers)
    except Failed as failed:
        print(failed, file=sys.stderr)  # noqa: T201
        return 1
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        run = _run(Path(name), options, words.json, merge=words.merge, faults=faults)
    print_run(run)
    for fault in faults:
        print(fault, file=sys.stderr)  # noqa: T201
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description="Measures the gateway.")
    parser.add_argument("--short", action="store_true", help="the main cells, within two minutes")
    parser.add_argument("--seconds", type=int, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="measurements, of which the median")
    parser.add_argument("--peers", default="", help="litellm, portkey, or both with a comma")
    parser.add_argument("--only", default="", help="cells and parts whose name has this in it")
    parser.add_argument("--entries", type=int, default=ENTRIES, help="in the store that is full")
    parser.add_argument("--curves", action="store_true", help="connections, keys, ledger records")
    parser.add_argument("--json", type=Path, help="the file for the results")
    parser.add_argument("--merge", action="store_true", help="keep what the file has of others")
    return parser


def _options(words: argparse.Namespace) -> Options:
    return Options(
        seconds=words.seconds or (SHORT_SECONDS if words.short else SECONDS),
        rounds=words.rounds,
        peers=[name for name in words.peers.split(",") if name],
        only=words.only,
        entries=words.entries,
        is_short=words.short,
        has_curves=words.curves,
    )


def _run(
    folder: Path, options: Options, file: Path | None, *, merge: bool, faults: list[str]
) -> Run:
    with open_setups(folder) as setups:
        run = Run(
            time.strftime("%Y-%m-%d", time.gmtime()),
            describe_machine(),
            describe_versions(setups["2 KB"].redis_url),
            options.seconds,
            options.rounds,
            _earlier(file) if merge else Part(),
        )
        for part in run_parts(folder, setups, options, faults):
            run = run.with_part(part)
            if file is not None:
                file.write_text(json.dumps(as_document(run), indent=2) + "\n", encoding="utf-8")
    return run


def _earlier(file: Path | None) -> Part:
    """The results that the file has; none if there is no file."""
    if file is None or not file.exists():
        return Part()
    return parse_document(json.loads(file.read_text(encoding="utf-8"))).results


if __name__ == "__main__":
    sys.exit(main())
