"""`make scale`: measures, prints the figures as JSON, and writes the tables of `docs/scale.md`.

python -m tests.bench.sizing [--tables-only]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bench.load import Failed
from tests.bench.processes import check_tools
from tests.bench.sizing.figures import FILE, as_json, load_figures
from tests.bench.sizing.measuring import measure
from tests.bench.sizing.page import BLOCKS, PAGE, write_page


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make scale", description="Measures for docs/scale.md.")
    parser.add_argument("--tables-only", action="store_true", help="from the committed figures")
    if not parser.parse_args().tables_only:
        try:
            check_tools()
            with tempfile.TemporaryDirectory(prefix="gateway-scale-") as folder:
                FILE.write_text(as_json(measure(Path(folder))), encoding="utf-8")
        except Failed as failed:
            print(failed, file=sys.stderr)  # noqa: T201
            return 1
    figures = load_figures()
    write_page(figures)
    print(as_json(figures))  # noqa: T201
    for make in BLOCKS.values():
        print("\n".join(make(figures)), end="\n\n")  # noqa: T201
    print(f"written: {PAGE}, {FILE}", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
