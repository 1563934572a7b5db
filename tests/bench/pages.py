"""Pages whose tables a command writes: blocks between `<!-- name -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

GB, TB = 10**9, 10**12
_BLOCK = r"(<!-- {name} -->\n).*?(<!-- end -->)"


def rendered(text: str, blocks: Mapping[str, Iterable[str]], *, page: str) -> str:
    """The page with the lines of each block. Raises `ValueError` if it lacks a block."""
    for name, lines in blocks.items():
        body = "\n".join(lines)
        pattern = re.compile(_BLOCK.format(name=name), re.DOTALL)
        text, count = pattern.subn(lambda found, body=body: found[1] + body + "\n" + found[2], text)
        if count != 1:
            raise ValueError(f"{page} needs the block <!-- {name} --> once, it has {count}")
    return text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """The lines of a table in Markdown."""
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Two digits that count below 100, three above."""
    if value >= 1000:
        size = 10 ** (len(str(int(value))) - 3)
        return f"{round(value / size) * size:,}"
    return f"{value:.3g}" if value >= 100 else f"{value:.2g}"


def milliseconds(value: float) -> str:
    """Three digits after the point below 0.1 ms, two above."""
    return f"{value:.3f} ms" if value < 0.1 else f"{value:.2f} ms"


def byte_size(value: float) -> str:
    """In the largest decimal unit that fits."""
    for size, unit in ((TB, "TB"), (GB, "GB"), (10**6, "MB"), (10**3, "KB")):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{value:.0f} B"


def percent(share: float) -> str:
    return f"{number(share * 100)} %"
