"""resolv.conf as a value: text in, servers, search domains and options out. Pure. The rules are resolv.conf(5)'s."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

TIMEOUT, MAX_TIMEOUT = 5, 30
ATTEMPTS, MAX_ATTEMPTS = 2, 5
"""What a stub resolver does where nothing is said, and what it caps (resolv.conf(5), RES_TIMEOUT and so on)."""
MAX_PATIENCE = 60.0
"""Seconds; nobody waits for a name for longer, whatever the options multiply to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvConf:
    """What the machine's resolver configuration says."""

    nameservers: tuple[str, ...] = ()
    """IP addresses in order, each once; a scoped IPv6 address keeps its `%scope`."""
    search: tuple[str, ...] = ()
    """Search domains; the last `search` or `domain` line wins."""
    options: tuple[str, ...] = ()
    """Words of all `options` lines, in order."""

    @property
    def patience(self) -> float:
        """Seconds for which a stub resolver with these options asks one server."""
        timeout = _number(self.options, "timeout:", TIMEOUT, MAX_TIMEOUT)
        return min(MAX_PATIENCE, float(timeout * _number(self.options, "attempts:", ATTEMPTS, MAX_ATTEMPTS)))


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


def _number(options: tuple[str, ...], word: str, default: int, most: int) -> int:
    """The last option of that name; nonsense says nothing."""
    said = [option.removeprefix(word) for option in options if option.startswith(word)]
    numbers = [int(text) for text in said if re.fullmatch(r"[0-9]{1,4}", text)]
    return min(most, max(1, numbers[-1])) if numbers else default


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
