"""Clusters with ingress modes and public listeners, good and broken: a part of `cases`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.topology.support import backend, group, write

Write = Callable[[Path], object]


def _groups(*groups: str) -> Write:
    return lambda folder: write(folder, *groups)


_WIDE = '{ port = 443, sans = ["*.b.example"], wildcard = true, alpn = ["h2", "http/1.1"] }'
_WEB = '{ port = 443, sans = ["web"] }'


def _public(listener: str, *, name: str = "a", port: str = "8080") -> str:
    """A backend with a public listener."""
    return backend(name, port=port, more=f'ingress = "tls"\npublic = {listener}')


GOOD: dict[str, Write] = {
    "public": _groups(
        group("a", backends=_public('{ port = 443, sans = ["gateway", "web", "203.0.113.34", "https://a.example"] }')),
        group("b", backends=_public(_WIDE, name="b")),
        group("c", backends=backend("c", more='ingress = "off"'), routes=""),
        group("d", backends=backend("d", more='ingress = "mtls"\npublic = null')),
    ),
}
BROKEN: dict[str, Write] = {
    **{
        f"public-{i}": _groups(group("a", backends=_public(text)))
        for i, text in enumerate(
            [
                "5",
                "{}",
                "{ port = 443 }",
                '{ sans = ["web"] }',
                '{ port = 0, sans = ["web"] }',
                '{ port = "443x", sans = ["web"] }',
                "{ port = 443, sans = [] }",
                '{ port = 443, sans = "web" }',
                '{ port = 443, sans = ["web"], port2 = 1 }',
                '{ port = 443, sans = ["web", "WEB"] }',
                '{ port = 443, sans = ["a_b.example"] }',
                '{ port = 443, sans = ["1.2.3"] }',
                '{ port = 443, sans = ["0.0.0.0"] }',
                '{ port = 443, sans = ["bücher.example"] }',
                '{ port = 443, sans = ["spiffe://demo/api"] }',
                '{ port = 443, sans = ["https://"] }',
                '{ port = 443, sans = ["api-0.peer.mesh"] }',
                '{ port = 443, sans = ["*.b.example"] }',
                '{ port = 443, sans = ["*.example"], wildcard = true }',
                '{ port = 443, sans = ["a.*.example"], wildcard = true }',
                '{ port = 443, sans = ["web"], wildcard = "yes" }',
                '{ port = 443, sans = ["web"], alpn = [] }',
                '{ port = 443, sans = ["web"], alpn = ["h3"] }',
                '{ port = 8787, sans = ["web"] }',
                '{ port = 8080, sans = ["web"] }',
                '{ port = 28080, sans = ["web"] }',
                '{ port = 53, sans = ["web"] }',
                '{ port = 443, sans = ["web"], address = "::" }',
                '{ port = 443, sans = ["web"], listen = "[::]:443" }',
            ]
        )
    },
    "public-twice": _groups(
        group("a", backends=_public(_WEB) + _public(_WEB, name="x", port="8081"), routes=""),
    ),
    **{
        f"public-shared-{i}": _groups(
            group("a", backends=_public(f'{{ port = 443, sans = ["x.b.example", {one}] }}')),
            group("b", backends=_public(f"{{ port = 443, wildcard = true, sans = [{other}] }}", name="b")),
        )
        for i, (one, other) in enumerate([('"web"', '"web"'), ('"https://web/a"', '"web"'), ('"web"', '"*.b.example"')])
    },
    "public-gateway-port": _groups(
        group("a", backends=_public(f'{{ port = 443, sans = ["{"a" * 40}-444s.gw.example"] }}'))
    ),
    "public-without-tls": _groups(group("a", backends=backend("a", more=f"public = {_WEB}"))),
    "tls-without-public": _groups(group("a", backends=backend("a", more='ingress = "tls"'))),
    "ingress-unknown": _groups(group("a", backends=backend("a", more='ingress = "mtl"'))),
    "off-with-a-route": _groups(group("a", backends=backend("a", more='ingress = "off"'))),
    "off-with-callers": _groups(group("a", backends=backend("a", more='ingress = "off"\ncallers = ["a"]'), routes="")),
}
