"""Public listeners: which names they may have, and what a manifest may say of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.topology.support import backend, group, write
from tests.topology.test_places import TREE, changed
from tests.topology.test_render import deployment, facts
from topology import cluster, public, render
from topology.manifest import decode
from topology.problems import ClusterError
from topology.public import GATEWAY, MAX_NAME, MAX_SANS, Public, normal, why_no_san
from topology.trees import ManifestError

WEB: dict[str, Any] = {"port": 443, "sans": ["web.example.com"], "wildcard": False, "alpn": ["http/1.1"]}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("web", "web"),
        ("Web.Example.COM", "web.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("203.0.113.34", "203.0.113.34"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("https://Web.example.com:8443/a", "https://Web.example.com:8443/a"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (GATEWAY, GATEWAY),
    ],
)
def test_names_have_one_form(written: str, meant: str) -> None:
    """DNS names, addresses and URIs; and what is in that form is taken."""
    assert normal(written) == meant
    assert why_no_san(meant, wildcard=False) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "expected a DNS name"),
        ("a_b.example", "expected a DNS name"),
        ("web.", "expected a DNS name"),
        ("1.2.3", "expected a DNS name"),
        ("a" * 64 + ".example", "expected a DNS name"),
        (".".join(["a" * 60] * 5), "expected a DNS name"),
        ("bücher.example", "punycode"),
        ("0.0.0.0", "no client dials"),
        ("224.0.0.1", "no client dials"),
        ("fe80::1%eth0", "no client dials"),
        ("https://", "scheme://host"),
        ("https://a b", "scheme://host"),
        ("http://[::1", "scheme://host"),
        ("https://" + "a" * 600, "scheme://host"),
        ("spiffe://demo/api", "named in the mesh"),
        ("https://web-0.peer.mesh/a", "whose host is 'web-0.peer.mesh', a name of the mesh's own zone"),
        ("https://WEB-0.PEER.MESH", "mesh's own zone"),
        ("https://a@web-0.peer.mesh:443", "mesh's own zone"),
        ("https://web-0.peer%2emesh", "whose host is 'web-0.peer%2emesh'; expected a DNS name"),
        ("https://*.example.com", "wildcard = true"),
        ("https://0.0.0.0", "no client dials"),
        ("https://[::]/", "no client dials"),
        ("https://a_b.example", "expected a DNS name"),
        ("SPIFFE://demo/api", "scheme://host"),
        ("api-0.peer.mesh", "mesh's own zone"),
        ("*.peer.mesh", "mesh's own zone"),
        ("*.example.com", "wildcard = true"),
        ("*.com", "top-level domain"),
        ("*", "first label"),
        ("a*.example.com", "first label"),
        ("*.*.example.com", "first label"),
    ],
)
def test_what_is_no_public_name_is_refused_with_the_reason(name: str, said: str) -> None:
    """So that a certificate says what was meant, and nobody's name in the mesh."""
    reason = why_no_san(name, wildcard=False)
    assert reason is not None
    assert said in reason
    assert len(reason) < 500


def test_a_wildcard_has_to_be_asked_for() -> None:
    """Then it may stand for the first label, and for that alone."""
    assert why_no_san("*.example.com", wildcard=True) is None
    assert why_no_san("https://*.example.com", wildcard=True) is None
    for name in ("*", "*.com", "*.peer.mesh", "a.*.com"):
        assert why_no_san(name, wildcard=True) is not None
    assert len("a." * 126 + "a") <= MAX_NAME


def published(entry: object, ingress: str = "tls") -> bytes:
    """The starter's manifest, whose api is reached so."""
    api = {**TREE["groups"]["api"]["backends"]["api"], "ingress": ingress, "public": entry}
    return changed("groups.api.backends.api", api)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"port": 0}, "api.public.port is 0, expected a port"),
        ({"port": 8787}, "public.port is 8787, which the admission broker uses"),
        ({"port": 53}, r"public.port is 53, where the mesh answers for names in every CVM \(127\.10\.0\.53\)"),
        ({"port": 8080}, "public.port is 8080, where the local server of backend 'api' listens"),
        ({"port": 28080}, "public.port is 28080, a sidecar port"),
        ({"sans": []}, "public.sans has 0 names"),
        ({"sans": ["web"] * 2}, "public.sans has 2 names, expected 1 to 100, each once"),
        ({"sans": [f"a{n}.example" for n in range(MAX_SANS + 1)]}, "public.sans has 101 names"),
        ({"sans": ["Web"]}, "public.sans is 'Web', expected 'web'"),
        ({"sans": ["gateway"]}, "public.sans is 'gateway', a word of cluster.tf"),
        ({"sans": ["spiffe://starter/api"]}, "public.sans is 'spiffe://starter/api'"),
        ({"sans": ["*.example.com"]}, "wildcard = true"),
        ({"alpn": []}, r"public.alpn is \[\]"),
        ({"alpn": ["h2", "spdy/1"]}, "public.alpn is"),
    ],
)
def test_a_manifest_with_a_listener_that_nobody_can_open_is_refused(change: dict[str, Any], said: str) -> None:
    """Coordinators and sidecars read by `decode`: the entry is named, and what they have stays in force."""
    assert decode(published(WEB)).groups["api"].backends["api"].public is not None
    with pytest.raises(ManifestError, match=said):
        decode(published({**WEB, **change}))


@pytest.mark.parametrize(
    ("entry", "ingress", "said"),
    [
        (None, "tls", "belong together"),
        (WEB, "mtls", "belong together"),
        (WEB, "off", "belong together"),
        (None, "on", "api.ingress is 'on', expected"),
        (None, "off", "has callers, but ingress is"),
    ],
)
def test_ingress_and_public_belong_together(entry: object, ingress: str, said: str) -> None:
    """A manifest that says two things of one backend is refused."""
    with pytest.raises(ManifestError, match=said):
        decode(published(entry, ingress))


def test_no_route_leads_to_what_is_off() -> None:
    """Nobody would ever be there."""
    tree = json.loads(published(None, "off"))
    tree["groups"]["api"]["backends"]["api"]["callers"] = []
    with pytest.raises(ManifestError, match=r"routes\[0\] leads to 'api', whose ingress is"):
        decode(json.dumps(tree).encode())
    tree["routes"] = [route for route in tree["routes"] if route["name"] != "api"]
    assert decode(json.dumps(tree).encode())


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("web.example", "web.example", "is 'web.example', and group 'worker' has 'web.example'"),
        ("https://web.example/a", "web.example", "has 'web.example'"),
        ("https://[2001:db8:0::1]", "2001:db8::1", "has '2001:db8::1'"),
        ("web.b.example", "*.b.example", r"has '\*\.b\.example'"),
        ("a.web.b.example", "*.b.example", None),
        ("web.example", "db.example", None),
    ],
)
def test_a_name_is_one_groups(one: str, other: str, said: str | None) -> None:
    """Another group's CVMs could answer in its place. Backends of one group may share a name."""
    tree = json.loads(published({**WEB, "sans": [one]}))
    api = tree["groups"]["api"]["backends"]["api"]
    tree["groups"]["api"]["backends"]["b"] = {
        **api, "port": 8081, "sidecar_port": 28081, "public": {**WEB, "port": 444, "sans": [one]}
    }  # fmt: skip
    assert decode(json.dumps(tree).encode())
    worker = next(iter(tree["groups"]["worker"]["backends"].values()))
    worker.update(ingress="tls", public={**WEB, "wildcard": True, "sans": [other]})
    if said is None:
        assert decode(json.dumps(tree).encode())
        return
    with pytest.raises(ManifestError, match=said):
        decode(json.dumps(tree).encode())


def test_a_name_of_the_gateway_is_the_own_one() -> None:
    """Those of other apps, of CVMs (by instance ID) and of other ports are somebody else's."""
    own = TREE["groups"]["api"]["app_id"]
    other = TREE["coordinators"]["app_id"]
    for name in (f"{own}-443s.gw.example", f"https://{own}-443s.gw.example/a", "web.example"):
        assert decode(published({**WEB, "sans": [name]}))
    for label in (f"{other}-443s", f"{other}-8787s", f"{own}-8787s", f"{own}-443", own, f"{'0a' * 20}-443s"):
        for name in (f"{label}.gw.example", f"https://{label}.gw.example/"):
            with pytest.raises(ManifestError, match=f"not the one of this listener, {own}-443s.<gateway>"):
                decode(published({**WEB, "sans": [name]}))


def test_two_listeners_on_one_port_are_refused() -> None:
    """Only one of them would be there."""
    tree = json.loads(published(WEB))
    api = tree["groups"]["api"]["backends"]["api"]
    tree["groups"]["api"]["backends"]["b"] = {**api, "port": 8081, "sidecar_port": 28081}
    with pytest.raises(ManifestError, match=r"public\.port is 443, as that of backend"):
        decode(json.dumps(tree).encode())


def test_a_manifest_of_before_is_read() -> None:
    """Every backend is then reached by the mesh alone."""
    tree = json.loads(json.dumps(TREE))
    for entry in tree["groups"].values():
        for it in entry["backends"].values():
            del it["ingress"], it["public"]
    assert json.loads(json.dumps(dataclasses.asdict(decode(json.dumps(tree).encode())))) == TREE


def loaded(folder: Path, more: str, *, name: str = "api") -> cluster.Cluster:
    """A cluster whose group api says `more` of its backend, beside a group worker."""
    found = backend(name, more=more)
    return cluster.load(write(folder, group("api", backends=found, routes=""), group("worker")))


SANS = 'ingress = "tls"\npublic = { port = 443, sans = ["gateway", "Web", "203.0.113.34"] }'


def test_the_gateways_names_take_the_place_of_the_word(tmp_path: Path) -> None:
    """One for each gateway in front of the app, and back; without one the reason is said."""
    found = loaded(tmp_path, SANS)
    apps = deployment()
    api = dataclasses.replace(facts("a"), gateways=("one.example", "two.example"))
    made = render.manifest(found, dataclasses.replace(apps, groups={**apps.groups, "api": api}))
    entry = made.groups["api"].backends["api"].public
    label = f"{'a' * 40}-443s"
    assert entry == Public(port=443, sans=(f"{label}.one.example", f"{label}.two.example", "web", "203.0.113.34"))
    assert public.as_written("a" * 40, entry) == ("gateway", "web", "203.0.113.34")
    assert public.gateway_bases("a" * 40, entry) == ("one.example", "two.example")
    with pytest.raises(ClusterError, match=r"api.public.sans holds 'gateway', but no gateway is known"):
        render.manifest(found, apps)


def test_what_is_off_has_no_callers_in_the_manifest(tmp_path: Path) -> None:
    """A program that does not know the field goes by these: it lets nobody in."""
    made = render.manifest(loaded(tmp_path, 'ingress = "off"'), deployment())
    assert (made.groups["api"].backends["api"].ingress, made.groups["api"].backends["api"].callers) == ("off", ())


def test_an_owner_may_demand_that_readers_know_the_fields() -> None:
    """By `critical`: a program of before refuses such a manifest instead of leaving the fields out."""
    tree = {**TREE, "critical": ["groups.backends.ingress", "groups.backends.public.sans"]}
    assert decode(json.dumps(tree).encode()).critical == tuple(tree["critical"])
