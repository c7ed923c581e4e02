"""The two strings of service meshes by annotation, for those who bring them along: egress and ingress. Pure.

`emoji#127.137.0.1:8081#emoji-svc:8080##voting#127.137.0.2:8081#voting-svc:8080` says where programs dial and where
that leads; `web#8080#false` says how a port is served. Entries are joined by `##`, parts by `#`. They are read
strictly: what is not exactly of this form is refused by entry and position, and nothing is trimmed or skipped.

An empty ingress string demands mutual TLS on every port; one that is absent demands nothing, and the backends' own
fields say what counts. An empty egress string says nothing that leaving it out would not say, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from topology.egress import MAX_ENTRIES, EgressEntry, EgressError, listen_of, remote_of
from topology.names import why_no_label
from topology.public import MTLS, OFF, TLS

SEPARATOR = "##"
"""Between entries."""
MAX_TEXT = 64 << 10
"""Characters of one string: MAX_ENTRIES entries with the longest names."""
_PORT = re.compile(r"[1-9][0-9]{0,4}")
T = TypeVar("T")


class StringError(ValueError):
    """A string is not of its form. The message is the end of a sentence, with the entry and its position."""


class Written(NamedTuple):
    """One entry as it stands in the string."""

    number: int
    """Of the entry, from 1."""
    position: int
    """Of its first character, from 1."""
    text: str

    def __str__(self) -> str:
        return f"entry {self.number} (character {self.position})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRule:
    """How one port is served."""

    name: str
    port: int
    off: bool
    """True: the port is taken out of the proxy altogether. False: TLS, and a client need not show a certificate."""

    @property
    def mode(self) -> str:
        """OFF, or TLS."""
        return OFF if self.off else TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """How the ports of a group are served."""

    rules: tuple[PortRule, ...]
    """The exceptions. None: mutual TLS everywhere."""

    def mode(self, port: int) -> str:
        """One of `topology.public.INGRESSES`."""
        return next((rule.mode for rule in self.rules if rule.port == port), MTLS)


def entries(text: str) -> Iterator[Written]:
    """The entries of `text`, as written."""
    position = 1
    for number, each in enumerate(text.split(SEPARATOR), 1):
        yield Written(number, position, each)
        position += len(each) + len(SEPARATOR)


def egress(text: str) -> tuple[EgressEntry, ...]:
    """The egresses in `<name>#<ip>:<port>#<host>:<port>##…`, all to routes of the mesh. StringError names the first
    that is wrong.
    """
    if not text:
        raise StringError("is empty, expected name#ip:port#host:port; leave it out where nothing is dialled")
    return _read(text, _egress, ("name", "ip:port", "host:port"))


def ingress(text: str) -> Ingress:
    """The ingress in `<name>#<port>#<true|false>##…`. Empty: mutual TLS on every port. StringError names the first
    entry that is wrong.
    """
    rules = _read(text, _ingress, ("name", "port", "true or false")) if text else ()
    seen: dict[int, str] = {}
    for written, rule in zip(entries(text), rules, strict=False):
        if rule.port in seen:
            raise StringError(f"{written} has port {rule.port}, as {seen[rule.port]} has; remove one")
        seen[rule.port] = str(written)
    return Ingress(rules=rules)


def _read(text: str, read: Callable[[tuple[_Part, _Part, _Part]], T], form: tuple[str, str, str]) -> tuple[T, ...]:
    if len(text) > MAX_TEXT:
        raise StringError(f"has {len(text)} characters, expected at most {MAX_TEXT}")
    found = []
    names: dict[str, str] = {}
    for written in entries(text):
        if written.number > MAX_ENTRIES:
            raise StringError(f"{written} is too much, expected at most {MAX_ENTRIES} entries")
        parts = _parts(written)
        if len(parts) != len(form):
            raise StringError(
                f"{written} is {written.text!r:.80}, of {len(parts) if written.text else 0} part(s), expected 3: "
                f"{'#'.join(form)}"
            )
        name = parts[0]
        if (reason := why_no_label(name.text)) is not None:
            raise name.error(f"the name {reason}")
        if name.text in names:
            raise StringError(f"{written} has the name {name.text!r}, as {names[name.text]} has; rename one")
        names[name.text] = str(written)
        found.append(read((name, parts[1], parts[2])))
    return tuple(found)


class _Part(NamedTuple):
    """A part of an entry."""

    entry: int
    position: int
    text: str

    def error(self, message: str) -> StringError:
        return StringError(f"entry {self.entry}, character {self.position}: {message}")


def _parts(written: Written) -> list[_Part]:
    found, position = [], written.position
    for text in written.text.split("#"):
        found.append(_Part(written.number, position, text))
        position += len(text) + 1
    return found


def _egress(parts: tuple[_Part, _Part, _Part]) -> EgressEntry:
    name, listen, remote = parts
    for what, part, read in (("ip:port", listen, listen_of), ("host:port", remote, remote_of)):
        try:
            read(part.text)
        except EgressError as error:
            raise part.error(f"{what} {error}") from error
    return EgressEntry(name=name.text, listen=listen.text, remote=remote.text)


def _ingress(parts: tuple[_Part, _Part, _Part]) -> PortRule:
    name, port, off = parts
    if not _PORT.fullmatch(port.text) or int(port.text) > 65535:
        raise port.error(f"the port is {port.text!r:.80}, expected 1 to 65535")
    if off.text not in ("true", "false"):
        raise off.error(
            f"is {off.text!r:.80}, expected true (the port bypasses the proxy) or false (TLS, and a client need show "
            "no certificate)"
        )
    return PortRule(name=name.text, port=int(port.text), off=off.text == "true")
