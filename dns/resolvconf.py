"""resolv.conf as a value: text in, servers, search domains and options out. Pure. The rules are resolv.conf(5)'s."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvConf:
    """What the machine's resolver configuration says."""

    nameservers: tuple[str, ...] = ()
    """IP addresses in order, each once; a scoped IPv6 address keeps its `%scope`."""
    search: tuple[str, ...] = ()
    """Search domains; the last `search` or `domain` line wins."""
    options: tuple[str, ...] = ()
    """Words of all `options` lines, in order."""


def parse(text: str) -> ResolvConf:
    """Reads the text of a resolv.conf. Lines and addresses that make no sense are skipped, as every resolver does."""
    nameservers: dict[str, None] = {}
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or line[0] in "#;":
            continue
        match words[0]:
            case "nameserver" if _is_address(words[1]):
                nameservers[words[1]] = None
            case "search":
                search = tuple(words[1:])
            case "domain":
                search = (words[1],)
            case "options":
                options += words[1:]
            case _:
                pass
    return ResolvConf(nameservers=tuple(nameservers), search=search, options=tuple(options))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
