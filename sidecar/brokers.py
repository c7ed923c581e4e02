"""Whom a CVM asks: the coordinators of its environment, those that the newest manifest names, and those to whom the
mesh was handed over. Pure.

Coordinators come and go while the environment stays. Wherever a URL comes from, who answers there is verified.
"""

from __future__ import annotations

from collections.abc import Callable

from admission.broker import Broker


class Brokers:
    """Called, it gives the brokers of this moment; a URL keeps its own."""

    def __init__(
        self, given: tuple[str, ...], named: Callable[[], tuple[str, ...]], make: Callable[[str], Broker]
    ) -> None:
        """`given` are the URLs of the environment, `named` those that manifests say."""
        self._given, self._named, self._make = given, named, make
        self._made: dict[str, Broker] = {}

    def __call__(self) -> tuple[Broker, ...]:
        """One for each URL. Who asks closes those that are here no more: a URL that comes back has a new one."""
        urls = dict.fromkeys((*self._given, *self._named()))
        self._made = {url: self._made.get(url) or self._make(url) for url in urls}
        return tuple(self._made.values())
