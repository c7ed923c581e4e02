"""Fetches tools from the archives that their makers publish, by pinned digest, into the cache. Standard library only.

It takes seconds where a build takes minutes. What the site sends counts only when its SHA-256 is the pinned one, so a
mirror can withhold the archive and cannot change it. Whatever goes wrong is one reason, and the caller builds the tool.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import platform
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from meshctl import tools
from meshctl.console import Progress, elapsed
from meshctl.errors import UserError
from meshctl.locks import exclusive

OFF = "off"
"""Value of the tool's variable with which nothing is fetched."""
TICK_SECONDS = 0.5
"""Seconds between two looks at how far a download is."""
CHUNK = 1 << 18
"""Bytes that are read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a site may cost."""

    silent: float = 10.0
    """Seconds without a byte, or to connect, after which it counts as away: a person waits for it before the build."""
    total: float = 120.0
    """Seconds for a whole archive. The build takes 3 to 6 minutes on two cores (README.md): more would win nothing."""
    archive: int = 256 << 20
    """Bytes of an archive; Consul's for 1.22.7 has some 60 MB."""
    program: int = 512 << 20
    """Bytes of the program in it; Consul 1.22.7 has some 180 MB."""


class _RefusedError(Exception):
    """The archive cannot be had; the text is the reason."""


def fetch(
    tool: tools.Tool, environ: Mapping[str, str], progress: Progress, bounds: Bounds = Bounds()
) -> tuple[Path | None, list[str]]:
    """The path of `tool` in the cache, fetched if it is not there; None and the reasons where it cannot be had.

    One process on the machine fetches at a time; the others take its result. OSError when the cache cannot be
    written; UserError when the tool's variable is no address.
    """
    archive = tool.archive
    if archive is None:
        return None, []
    site = _site(archive, environ)
    known = archive.digests.get(platform.machine())
    if site is None:
        return None, [f"{archive.variable} is {OFF!r}: no archive is fetched"]
    if known is None:
        return None, [f"{site} has no pinned archive for {platform.machine()}"]
    machine, digest = known
    url = f"{site}/{archive.path.format(version=tool.version, machine=machine)}"
    final = tools.released_path(tool, environ)
    room = final.parent.parent

    def waiting(seconds: float) -> None:
        progress.update(f"another run downloads {tool.name} ({elapsed(seconds)})")

    with exclusive(room / ".archive-lock", waiting):
        if os.access(final, os.X_OK):
            return final, []
        for stale in room.glob(".archive-*.d"):
            shutil.rmtree(stale, ignore_errors=True)
        scratch = room / f".archive-{tool.name}-{os.getpid()}.d"
        scratch.mkdir(parents=True)
        try:
            started = time.monotonic()
            _download(_Transfer(url, scratch / "archive", bounds), digest, tool, progress)
            _unpack(scratch / "archive", scratch / "made" / tool.name, tool, bounds)
            shutil.rmtree(final.parent, ignore_errors=True)
            (scratch / "made").rename(final.parent)
        except _RefusedError as refused:
            return None, [f"{url}: {refused}"]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    progress.line(f"downloaded {tool.name} {tool.version} in {elapsed(time.monotonic() - started)}")
    return final, []


def _site(archive: tools.Archive, environ: Mapping[str, str]) -> str | None:
    """The address below which the archives are; None for "off". UserError."""
    text = environ.get(archive.variable, "") or archive.site
    if text == OFF:
        return None
    if not _allowed(text):
        raise UserError(
            f"{archive.variable} is {text!r}, expected an https address (http only of this machine) or {OFF!r}",
            f"unset {archive.variable}; its default is {archive.site}",
        )
    return text.rstrip("/")


def _allowed(url: str) -> bool:
    """True for https with a host, and for http at a loopback address. Pure."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "https":
            return bool(parts.hostname)
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to what would be taken as an address, and no other; `urllib` bounds how many."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """As the base class; _RefusedError."""
        if not _allowed(newurl):
            raise _RefusedError(f"it redirects to {newurl!r}, expected an https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass(slots=True)
class _Transfer:
    """One download, as its thread and the thread that waits for it see it."""

    url: str
    target: Path
    bounds: Bounds
    count: int = 0
    """Bytes so far."""
    size: int = 0
    """Bytes that the site announced; 0: none."""
    digest: str = ""
    """SHA-256 in hex, once all of it is there."""
    reason: str = ""
    """Why it failed."""

    def run(self) -> None:
        """Fetches it. Ends with `digest` or `reason` set."""
        try:
            opener = urllib.request.build_opener(_Redirects)
            with opener.open(self.url, timeout=self.bounds.silent) as answer, self.target.open("xb") as file:
                text = str(answer.headers.get("Content-Length", ""))
                self.size = int(text) if text.isdecimal() and len(text) <= len(str(self.bounds.archive)) else 0
                self.digest = _copy(answer, file, self.bounds.archive, self._tick)
        except _RefusedError as refused:
            self.reason = str(refused)
        except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
            self.reason = str(getattr(error, "reason", "") or error) or type(error).__name__

    def _tick(self, count: int) -> None:
        self.count = count

    @property
    def done(self) -> str:
        """How much is there, for a person."""
        return f"{self.count >> 20} of {self.size >> 20} MiB" if self.size else f"{self.count >> 20} MiB"


def _download(transfer: _Transfer, digest: str, tool: tools.Tool, progress: Progress) -> None:
    """Waits for `transfer`. _RefusedError where it brings something else than `digest`, or not in time.

    In a thread of its own: a site that sends one byte of its head every few seconds is bounded by no timeout of a
    socket. A thread that is given up ends with the process.
    """
    thread = threading.Thread(target=transfer.run, name="archive", daemon=True)
    started = time.monotonic()
    thread.start()
    while thread.is_alive():
        seconds = time.monotonic() - started
        if seconds > transfer.bounds.total:
            raise _RefusedError(f"{transfer.done} came in {transfer.bounds.total:g} s")
        progress.update(f"downloading {tool.name} {tool.version} ({elapsed(seconds)}, {transfer.done})")
        thread.join(TICK_SECONDS)
    if transfer.reason:
        raise _RefusedError(transfer.reason)
    if transfer.size and transfer.count < transfer.size:
        raise _RefusedError(f"it ended after {transfer.count} of {transfer.size} bytes")
    if transfer.digest != digest:
        raise _RefusedError(f"what it has is SHA-256 {transfer.digest}, expected {digest}")


def _copy(source: IO[bytes], target: IO[bytes], limit: int, tick: Callable[[int], None]) -> str:
    """Copies all of `source`, and calls `tick` with the bytes so far; SHA-256 in hex. _RefusedError beyond `limit`."""
    digest, count = hashlib.sha256(), 0
    # read1: what one read of the connection gives. read would wait for a whole chunk, however slowly it comes.
    read = getattr(source, "read1", source.read)
    while data := read(CHUNK):
        count += len(data)
        if count > limit:
            raise _RefusedError(f"it has more than {limit >> 20} MiB")
        target.write(data)
        digest.update(data)
        tick(count)
    return digest.hexdigest()


def _unpack(archive: Path, target: Path, tool: tools.Tool, bounds: Bounds) -> None:
    """Takes the program out of `archive` and looks whether it runs. _RefusedError."""
    target.parent.mkdir()
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(tool.name) as source, target.open("xb") as file:
            _copy(source, file, bounds.program, lambda _: None)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise _RefusedError(f"it is no zip file with {tool.name!r} in it: {error}") from error
    target.chmod(0o755)
    with suppress(OSError):
        archive.unlink()
    problem = tools.version_problem(tool, target)
    if problem:
        raise _RefusedError(problem)
