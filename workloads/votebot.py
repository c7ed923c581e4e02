"""A client of clusters/emojivoto from outside of the mesh, as a browser is one: it votes at random, over HTTPS.

`python -m workloads.votebot https://web:443 --cacert verify/mesh-ca.pem --address 127.0.0.1:40443 --votes 10`. It
trusts the CA file and nothing else, and prints one line a vote. Standard library only. IO: HTTPS, clock.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from random import Random
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

T = TypeVar("T")
TIMEOUT = 10.0
"""Seconds for a connection, and for an answer."""
TRIES = 5
"""Attempts at one request before the bot gives up."""
PAUSE = 0.2
"""Seconds after the first failed attempt; twice as long after each further one."""
_MAX_ANSWER = 64 << 10
"""Bytes of an answer that are read: the list of shortcodes has some 2 KiB."""
_MAX_CODES = 500
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}

EXIT_FAILED = 1
EXIT_ARGUMENTS = 2
EXIT_UNVERIFIED = 3
"""Exit codes: no answer after all attempts; arguments that are none; a certificate that does not verify."""


class BotError(Exception):
    """The bot ends; the message is one line with the reason."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Whom the bot asks."""

    host: str
    """The name, or the address, that the certificate must have."""
    port: int
    address: tuple[str, int]
    """Where it is dialled."""
    tls: ssl.SSLContext

    @property
    def url(self) -> str:
        """For messages."""
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class _Connection(HTTPSConnection):
    """To an address that the URL does not say: the certificate is held against the URL's host all the same."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.host, site.port, timeout=TIMEOUT, context=site.tls)
        self._site = site

    def connect(self) -> None:
        plain = socket.create_connection(self._site.address, TIMEOUT)
        try:
            self.sock = self._site.tls.wrap_socket(plain, server_hostname=self._site.host)
        except BaseException:
            plain.close()
            raise


def site_of(url: str, cacert: str, address: str | None) -> Site:
    """The site at `url`. BotError for arguments that are none, or a CA file that cannot be read."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise BotError(f"{url!r}: {error}; expected https://HOST[:PORT]", EXIT_ARGUMENTS) from error
    if parts.scheme != "https" or not host or parts.path.strip("/") or parts.query:
        raise BotError(f"{url!r} is no https://HOST[:PORT]", EXIT_ARGUMENTS)
    dialled = (host, port)
    if address is not None:
        name, _, number = address.rpartition(":")
        if not name or not (number.isascii() and number.isdecimal()) or not 0 < int(number[:6]) < 65536:
            raise BotError(f"--address {address!r} is no HOST:PORT", EXIT_ARGUMENTS)
        dialled = (name.strip("[]"), int(number))
    try:
        tls = ssl.create_default_context(cafile=cacert)
    except (OSError, ssl.SSLError) as error:
        raise BotError(f"--cacert {cacert}: {error}; ./mesh verify writes one", EXIT_ARGUMENTS) from error
    return Site(host=host, port=port, address=dialled, tls=tls)


def exchange(site: Site, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    """Status and text of one answer, over a connection of its own. BotError where the certificate does not verify."""
    connection = _Connection(site)
    try:
        connection.request(method, path, body, {"Connection": "close", **(_FORM if body is not None else {})})
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_ANSWER).decode(errors="replace")
    except ssl.SSLCertVerificationError as error:
        raise BotError(
            f"the certificate of {site.url} does not verify: {error.verify_message}; is --cacert of the manifest that "
            "is in force, and the name one of the certificate's? ./mesh verify writes the CA anew",
            EXIT_UNVERIFIED,
        ) from error
    finally:
        connection.close()


def insist(attempt: Callable[[], T | str], what: str, sleep: Callable[[float], None]) -> T:
    """What `attempt` gives that is no reason (a str), after `TRIES` attempts at most. BotError with the last reason.

    A vote whose answer was lost on the way is given again, and counted twice.
    """
    reason = ""
    for number in range(TRIES):
        if number:
            sleep(PAUSE * 2 ** (number - 1))
        try:
            found = attempt()
        except (OSError, HTTPException) as error:
            found = f"{type(error).__name__}: {error}"
        if not isinstance(found, str):
            return found
        reason = found
    raise BotError(f"{what}: {reason}; tried {TRIES} times")


def shortcodes(site: Site) -> list[str] | str:
    """What can be voted for; a reason where the answer is something else."""
    status, text = exchange(site, "GET", "/api/list")
    if status != 200:
        return f"HTTP {status}: {' '.join(text.split())[:200]}"
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(tree, list) or not 0 < len(tree) <= _MAX_CODES or not all(isinstance(it, str) for it in tree):
        return f"expected a list of 1 to {_MAX_CODES} shortcodes"
    return tree


def vote(site: Site, code: str) -> bool | str:
    """Votes as the page's form does, whose answer leads back to the page; a reason where the answer is another."""
    status, _ = exchange(site, "POST", "/vote", urlencode({"shortcode": code}))
    return True if status == 303 else f"HTTP {status}"


def run(site: Site, votes: int, pause: float, rng: Random, sleep: Callable[[float], None] = time.sleep) -> None:
    """Votes that often, with `pause` seconds between. BotError ends it."""
    codes: list[str] = insist(lambda: shortcodes(site), f"asking {site.url} for the emoji", sleep)
    for number in range(1, votes + 1):
        code = rng.choice(codes)
        insist(lambda code=code: vote(site, code), f"voting for {code} at {site.url}", sleep)  # type: ignore[misc]
        print(f"vote {number} of {votes}: {code}", flush=True)
        if number < votes:
            sleep(pause)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="votebot", description="Votes at random over HTTPS.")
    parser.add_argument("url", help="https://HOST[:PORT]; the certificate must have HOST")
    parser.add_argument("--cacert", required=True, metavar="FILE", help="what to trust, such as verify/mesh-ca.pem")
    parser.add_argument("--address", metavar="HOST:PORT", help="where to dial instead of the URL's host and port")
    parser.add_argument("--votes", type=int, default=10, metavar="N")
    parser.add_argument("--pause", type=float, default=0.2, metavar="SECONDS", help="between two votes")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.votes < 1 or not 0 <= chosen.pause <= 3600:
            raise BotError("expected --votes of 1 or more, and --pause of 0 to 3600 seconds", EXIT_ARGUMENTS)
        run(site_of(chosen.url, chosen.cacert, chosen.address), chosen.votes, chosen.pause, Random())
    except BotError as error:
        print(f"votebot: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
