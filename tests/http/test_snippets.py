"""The playground shows a request as curl, Python and JavaScript: as programs that run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from gateway.api.dashboard.page import STATIC
from tests.gateways import Client, InProcess, Upstream

SCRIPT = Path(__file__).with_name("snippets.mjs")
PLACEHOLDER = "YOUR_GATEWAY_KEY"
PROMPT = (
    'It\'s "an otter" \\ in ${HOME} `id` $(id) %s {x} #{y} \\n \\u0041 </script> \'\'\'  """\n'
    "\tsecond line\r\n\x7f\x85\u2028\u00e9 \U0001f9a6 @file !! ; & | > /dev/null\\"
)
"""What shells, Python and JavaScript each take for something else, unless it is escaped."""

PROGRAMS = {
    "curl": ["sh", "-s"],
    "python": [sys.executable, "-"],
    "javascript": ["node", "--input-type=module"],
}


async def run(*command: str | Path, folder: Path, text: str = "") -> str:
    """What a program prints; it gets `text` and runs in `folder`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await process.communicate(text.encode())
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def programs(folder: Path, client: Client, request: dict[str, Any]) -> dict[str, str]:
    """The programs by language, with the client's key in place of the placeholder."""
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    shutil.copy(STATIC / "lib" / "snippets.js", folder)
    given = json.dumps({"publicUrl": f"{client.url}/v1", **request})
    found: dict[str, str] = json.loads(await run("node", SCRIPT, folder, given, folder=folder))
    assert set(found) == set(PROGRAMS)
    for text in found.values():
        assert PLACEHOLDER in text
    return {name: text.replace(PLACEHOLDER, client.secret) for name, text in found.items()}


@pytest.mark.parametrize(
    ("body", "variation", "needs_base64"),
    [
        ({"model": "gpt-image-2", "n": 2, "output_format": "webp", "user": "o'tto"}, 3, False),
        ({"model": "dall-e-3", "style": "natural", "safety_identifier": 'a "b"'}, 0, True),
    ],
    ids=["gpt", "dall-e"],
)
async def test_the_programs_get_the_same_images_from_the_cache(
    embedded: InProcess,
    upstream: Upstream,
    tmp_path: Path,
    body: dict[str, Any],
    variation: int,
    needs_base64: bool,
) -> None:
    for needed in ("node", "curl"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed: apt-get install nodejs curl")
    client = await embedded.client.with_key()
    headers = {"X-Gateway-Variation": str(variation)}
    format_of_links = {"response_format": "b64_json"} if needs_base64 else {}
    bought = await client.ask(PROMPT, headers=headers, **body, **format_of_links)
    assert bought.status == 200, bought.body
    images = [b64decode(image) for image in bought.images]
    request = {
        # As the playground sends it: how the image arrives is no part of the programs.
        "body": {"prompt": PROMPT, **body, "stream": True, "partial_images": 2},
        "variation": variation,
        "needsBase64": needs_base64,
    }

    for name, text in (await programs(tmp_path, client, request)).items():
        folder = tmp_path / name
        folder.mkdir()
        await run(*PROGRAMS[name], folder=folder, text=text)

        ending = body.get("output_format", "png")
        files = [folder / f"image-{number}.{ending}" for number in range(len(images))]
        assert [file.read_bytes() for file in files] == images, name
    assert len(await upstream.bodies()) == 1


async def test_a_program_shows_the_gateways_error(embedded: InProcess, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed: apt-get install nodejs")
    client = await embedded.client.with_key()
    request = {"body": {"model": "gpt-image-2", "prompt": "an otter", "size": "1x1"}}

    for name, text in (await programs(tmp_path, client, request)).items():
        with pytest.raises(AssertionError, match="Invalid value: '1x1'"):
            await run(*PROGRAMS[name], folder=tmp_path, text=text)
