"""Clusters whose programs dial explicit egresses, good and broken; `cases` has them too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.topology.certificates import certificate
from tests.topology.support import backend, group, write
from topology.egress import MAX_ROOTS_BYTES

Write = Callable[[Path], object]


def _dialling(egress: str, *, callers: str = "null", field: str = "egress", pem: str | None = None) -> Write:
    """Group `a` with a backend that `callers` may call, and `web`, whose programs dial `egress`. `pem` is the content
    of a file `ca.pem`."""
    own = group(
        "a",
        backends=backend("a", more=f"callers = {callers}") + backend("x", port="8081"),
        routes='a = { backend = "a" }\nx = { backend = "x", members = true }',
    )

    def make(folder: Path) -> None:
        write(folder, own, group("web", more=f"{field} = {egress}"))
        if pem is not None:
            (folder / "ca.pem").write_text(pem)

    return make


def _bank(more: str, *, remote: str = "bank.example.com:443", pem: str | None = None) -> Write:
    """`web` dials a server outside, with `more` in the entry."""
    entry = f'{{ name = "bank", listen = "127.137.0.1:8443", remote = "{remote}", tls = "web", {more} }}'
    return _dialling(f"[{entry}]", pem=pem)


def _to_route(remote: str, *, listen: str = "127.137.0.1:8081", more: str = "", callers: str = "null") -> Write:
    """`web` dials a route, with `more` in the entry."""
    return _dialling(f'[{{ name = "a", listen = "{listen}", remote = "{remote}", {more} }}]', callers=callers)


_ENTRY = '{ name = "a", listen = "127.1.1.1:81", remote = "a:8080" }'


def _served(ingress: str, more: str = "") -> Write:
    """Group `web`, whose backend on 8080 has `more`, with an annotation's string for what it serves."""
    backends = backend("web", more=more) + backend("x", port="8081")
    return lambda folder: write(folder, group("web", backends=backends, more=f"servicemesh_ingress = {ingress}"))


_PUBLIC = 'public = { port = 443, sans = ["web.example.com"] }'

GOOD: dict[str, Write] = {
    "ingress-string": _served('"web#8080#false"', _PUBLIC),
    "ingress-string-off": _served('"x#8081#true"'),
    "ingress-string-empty": _served('""'),
    "ingress-string-null": _served("null", f'ingress = "tls"\n{_PUBLIC}'),
    "egress": _dialling(
        """[
          { name = "a", listen = "127.137.0.1:8080", remote = "a:8080" },
          { name = "x", listen = "127.137.0.1:8081", remote = "x-1:8081", tls = "mesh", sni = null, ca = null },
          { name = "bank", listen = "127.0.0.1:8443", remote = "bank.example.com:443", tls = "web" },
          { name = "six", listen = "127.0.0.1:8444", remote = "[2001:db8::1]:443", tls = "web", sni = "b.example" },
          { name = "own", listen = "127.0.0.1:8445", remote = "own.example:443", tls = "web",
            ca = "${path.module}/ca.pem" },
        ]""",
        pem=certificate(),
    ),
    "egress-and-callers": _to_route("a:8080", callers='["web"]'),
    "egress-nobody": _dialling("[]"),
    "egress-null": _dialling("null"),
    "egress-string": _dialling('"a#127.137.0.1:8081#a:8080##x#127.137.0.2:8081#x-0:8081"', field="servicemesh_egress"),
    "egress-string-null": _dialling("null", field="servicemesh_egress"),
}

BROKEN: dict[str, Write] = {
    "ingress-string-tls": _served('"web#8080#false"'),
    "ingress-string-twice": _served('""', f'ingress = "tls"\n{_PUBLIC}'),
    "ingress-string-public": _served('""', _PUBLIC),
    "ingress-string-port": _served('"web#8082#true"'),
    "ingress-string-list": _served("[]"),
    "ingress-string-form": _served('"web"'),
    **{
        f"egress-{i}": _dialling(text)
        for i, text in enumerate(
            [
                "{}",
                "true",
                '"a#127.137.0.1:8081#a:8080"',
                "[1]",
                "[{}]",
                '[{ name = "a", listen = "127.137.0.1:8081", remote = "a:8080", port = 1 }]',
                '[{ name = "a", listen = "127.137.0.1:8081", remote = 8080 }]',
                f"[{_ENTRY}, {_ENTRY}]",
            ]
        )
    },
    "egress-unknown-route": _to_route("b:8080"),
    "egress-all-members": _to_route("x:8081"),
    "egress-wrong-port": _to_route("a:8081"),
    "egress-no-port": _to_route("a"),
    "egress-no-caller": _to_route("a:8080", callers='["a"]'),
    "egress-loop": _to_route("127.137.0.1:8081"),
    "egress-loop-by-the-ingress": _to_route("a:8080", listen="127.0.0.1:8080"),
    "egress-vip": _to_route("a:8080", listen="127.10.3.3:8081"),
    "egress-everywhere": _to_route("a:8080", listen="0.0.0.0:8081"),
    "egress-platform": _to_route("a:8080", listen="127.0.0.1:8500"),
    "egress-plain": _to_route("a:8080", more='tls = "plain"'),
    "egress-mesh-sni": _to_route("a:8080", more='sni = "a.example"'),
    "egress-web-loop": _bank("", remote="127.137.0.1:8443"),
    "egress-web-route": _bank("", remote="a:8080"),
    "egress-web-sni": _bank('sni = "*.example.com"'),
    "egress-web-no-file": _bank('ca = "${path.module}/ca.pem"'),
    "egress-web-no-certificate": _bank('ca = "${path.module}/ca.pem"', pem="nothing"),
    "egress-web-not-text": _bank('ca = "${path.module}/ca.pem"', pem="x" * (MAX_ROOTS_BYTES + 2)),
    "egress-twice": _dialling(
        '"a#127.137.0.1:8081#a:8080"\negress = [{ name = "a", listen = "127.1.1.1:81", remote = "a:8080" }]',
        field="servicemesh_egress",
    ),
    **{
        f"egress-string-{i}": _dialling(text, field="servicemesh_egress")
        for i, text in enumerate(
            [
                '""',
                "[]",
                "5",
                '"a"',
                '"a#127.137.0.1:8081#b:8080"',
                '"a#127.137.0.1:8081#a:8080##x#127.137.0.1:8081#x-0:8081"',
                '"a#127.137.0.1:8081#a:8080##"',
            ]
        )
    },
}
