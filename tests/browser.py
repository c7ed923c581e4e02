"""A headless Chromium that trusts one CA, and what it sees of a page."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import popen

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SECONDS = 60
"""For one view: 2 s on a quiet machine."""
SIZE = (800, 600)
"""Pixels of a screenshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """A browser with a home of its own."""

    program: str
    home: Path

    def dom(self, url: str, *options: str) -> str:
        """The page's document, as it is once it has loaded."""
        return self._run("--dump-dom", *options, url)

    def picture(self, url: str, *options: str) -> bytes | None:
        """A screenshot of the page, PNG; None where the browser shows none, as of a page that it does not trust."""
        path = self.home / "page.png"
        path.unlink(missing_ok=True)
        self._run(f"--screenshot={path}", f"--window-size={SIZE[0]},{SIZE[1]}", *options, url)
        return path.read_bytes() if path.exists() else None

    def _run(self, *arguments: str) -> str:
        argv = [
            self.program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={self.home / 'profile'}", *arguments,
        ]  # fmt: skip
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        process = popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, error = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0, error[-2000:]
        return str(out)


@contextmanager
def browser(ca: Path) -> Iterator[Browser]:
    """A browser that trusts the CA in the file `ca` as well. Skips where there is no Chromium or no certutil."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None or shutil.which("certutil") is None:
        pytest.skip("no Chromium, or no certutil: apt-get install chromium libnss3-tools")
    with tempfile.TemporaryDirectory(prefix="browser-") as folder:
        base = Path(folder) / ".pki" / "nssdb"
        base.mkdir(parents=True)
        for command in (
            ["certutil", "-N", "-d", f"sql:{base}", "--empty-password"],
            ["certutil", "-A", "-d", f"sql:{base}", "-n", "mesh", "-t", "C,,", "-i", str(ca)],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        yield Browser(program=program, home=Path(folder))


def lines(png: bytes) -> int:
    """How many different lines an 8-bit RGB or RGBA picture without interlacing has, as they are written (RFC 2083).

    Of a blank one each line but the first is written as the same as the one above.
    """
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, each = 8, b"", 0
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour = struct.unpack(">IIBB", body[:10])
            assert (depth, colour) in ((8, 2), (8, 6)), (depth, colour)
            each = 1 + width * (3 if colour == 2 else 4)
        elif kind == b"IDAT":
            data += body
        at += length + 12
    raw = zlib.decompress(data)
    return len({raw[start : start + each] for start in range(0, len(raw), each)})
