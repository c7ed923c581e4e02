"""The plan-time checks of how backends are reached: ingress modes, public listeners. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from topology.addresses import sidecar_port_of
from topology.model import Backend, Cluster, Group
from topology.public import INGRESSES, MAX_SANS, OFF, TLS, shared, why_no_alpn, why_no_san, why_not_own, why_taken

Problem = tuple[str, str]
"""The entry, and what is wrong with it as the end of a sentence."""


def public_problems(cluster: Cluster) -> Iterator[Problem]:
    """What is wrong, with its entry, in the order of the file."""
    for group in cluster.groups:
        for backend in group.backends:
            entry = f"workload_groups.{group.name}.backends.{backend.name}"
            yield from _mode(entry, backend)
            if backend.public is not None:
                yield from _listener(f"{entry}.public", group, backend)
        yield from _routes(group)
    for entry, why in shared(
        (group.name, f"workload_groups.{group.name}.backends.{backend.name}.public.sans", san)
        for group in cluster.groups
        for backend in group.backends
        if backend.public is not None
        for san in backend.public.sans
    ):
        yield entry, why.replace("is ", "holds ", 1)


def _mode(entry: str, backend: Backend) -> Iterator[Problem]:
    if backend.ingress not in INGRESSES:
        # Said already, and `public` beside it may be right.
        return
    if backend.ingress == TLS and backend.public is None:
        message = f'is "{TLS}", but there is no public listener; add public = {{ port = 443, sans = ["gateway"] }}'
        yield f"{entry}.ingress", message
    if backend.public is not None and backend.ingress != TLS:
        yield f"{entry}.public", f'is given, but ingress is "{backend.ingress}"; write ingress = "{TLS}", or remove it'
    if backend.ingress == OFF and backend.callers:
        message = f'is given, but ingress is "{OFF}": nobody calls what only its own CVM reaches; remove one of them'
        yield f"{entry}.callers", message


def _listener(entry: str, group: Group, backend: Backend) -> Iterator[Problem]:
    public = backend.public
    assert public is not None
    # 0: what is written is no port, which is said already.
    why = why_taken(public.port, {it.name: it for it in group.backends}, backend.name) if public.port else None
    if why is None:
        outer = {sidecar_port_of(it.port): it.name for it in group.backends}
        if public.port in outer:
            why = f"is {public.port}, the sidecar port of backend {outer[public.port]!r}; choose another"
    if why is not None:
        yield f"{entry}.port", why
    if len(public.sans) > MAX_SANS:
        yield f"{entry}.sans", f"has {len(public.sans)} names, expected {MAX_SANS} at most"
    if not public.sans:
        yield f"{entry}.sans", "is empty; a certificate has at least one name"
    for name in dict.fromkeys(public.sans):
        if public.sans.count(name) > 1:
            yield f"{entry}.sans", f"holds {name!r} more than once; remove one"
        why = why_no_san(name, wildcard=public.wildcard) or why_not_own(name, None, public.port)
        if why is not None:
            yield f"{entry}.sans", why.replace("is ", "holds ", 1)
    if (why := why_no_alpn(public.alpn)) is not None:
        yield f"{entry}.alpn", why


def _routes(group: Group) -> Iterator[Problem]:
    off = {backend.name for backend in group.backends if backend.ingress == OFF}
    for route in group.routes:
        if route.backend in off:
            message = (
                f'is {route.backend!r}, whose ingress is "{OFF}": it is for programs of its own CVM, at 127.0.0.1; '
                "remove the route, or the ingress"
            )
            yield f"workload_groups.{group.name}.routes.{route.name}.backend", message
