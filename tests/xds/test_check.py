"""Inconsistent specs are refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.secret import Secret
from tests.xds.entries import LEAF, OUTSIDE, endpoint, ingress, outside, public, route, spec
from xds.snapshot import build
from xds.spec import Endpoint, Sole, Spec, SpecError

BOTH = (LEAF, OUTSIDE)
DOOR = Endpoint(address="127.137.0.1", port=81)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (spec(route("a"), route("b")), "'b'.*'a'.*127.10.0.5:9090"),
        (spec(route("a"), route("a", vip="127.10.0.6")), "'a' is there twice"),
        (spec(route(), ingress(address="127.10.0.5", port=9090)), "ingress 'api'.*egress route 'worker'"),
        (spec(route(identity="nobody")), "'worker'.*'nobody'"),
        (spec(ingress(identity="nobody")), "'api'.*'nobody'"),
        (spec(route(peer_sans=())), "'worker'.*peer_sans"),
        (spec(route(peer_sans=("",))), "'worker'.*peer_sans"),
        (spec(route(vip="worker")), "'worker'.*IP address"),
        (spec(route(port=0)), "'worker'.*port 0"),
        (spec(route(endpoints=(Endpoint(address="db.internal", port=1),))), "endpoint of egress route 'worker'"),
        (spec(route(sole=Sole(endpoint=endpoint(3)))), "'worker' leads to .*one of its endpoints"),
        (spec(ingress(target=Endpoint(address="127.0.0.1", port=70000))), "target of ingress 'api'"),
        (spec(ingress("")), "'api'.*empty principal"),
        (spec(ingress(source="10.0.0.1")), "'api' dials from '10.0.0.1'"),
        (spec(ingress(source="::1")), "'api' dials from '::1'"),
        (spec(route(), leaves=(replace(LEAF, uri=""),)), "leaf 'me' has no URI"),
        (spec(route("*")), "no usable name"),
        (spec(route(), leaves=(LEAF, LEAF)), "leaf 'me' is there twice"),
        (spec(route(), leaves=(replace(LEAF, key_pem=Secret("nonsense")),)), "leaf 'me' is not a PEM"),
        (spec(route(), roots=""), "roots_pem"),
        (spec(route(doors=(DOOR, DOOR))), "door of egress route 'worker'.*127.137.0.1:81"),
        (spec(route(doors=(DOOR,)), outside(listen=DOOR)), "outside 'bank'.*door of egress route 'worker'"),
        (spec(route(doors=(Endpoint(address="localhost", port=1),))), "door of egress route 'worker'.*IP address"),
        (spec(outside(), outside(listen=DOOR)), "outside 'bank' is there twice"),
        (spec(outside(listen=Endpoint(address="127.0.0.1", port=0))), "listener of outside 'bank'.*port 0"),
        (spec(outside(host="")), "outside 'bank' has host ''"),
        (spec(outside(server_name="")), "server name ''"),
        (spec(outside(roots_pem=None)), "outside 'bank' has no roots"),
        (spec(outside(roots_pem="x")), "outside 'bank' has roots without a certificate"),
        (replace(spec(outside()), resolver=None), "outside 'bank' has a name.*no resolver"),
        (spec(ingress(identity="out"), leaves=(OUTSIDE,)), "'api' presents leaf 'out'"),
        (spec(route(identity="out"), leaves=(OUTSIDE,)), "'worker' presents leaf 'out'"),
        (spec(ingress(), public()), "public listener 'api' presents leaf 'out', expected one of"),
        (spec(public(), leaves=(OUTSIDE,)), "public listener 'api' leads to 'api', expected an ingress"),
        (spec(ingress(), public(port=0), leaves=BOTH), "public listener 'api' has port 0"),
        (spec(ingress(), public(alpn=()), leaves=BOTH), "public listener 'api' offers nothing"),
        (spec(ingress(), public(), public(port=1), leaves=BOTH), "public listener 'api' is there twice"),
        (spec(ingress(), public(), public(name="b"), leaves=BOTH), "public listener 'b' and public listener 'api'"),
    ],
)
def test_rule_18_an_inconsistent_spec_is_refused_by_name(bad: Spec, named: str) -> None:
    """Envoy would accept some of these and serve nothing, or the wrong thing; the caller keeps its last good
    snapshot."""
    with pytest.raises(SpecError, match=named) as error:
        build(bad)
    assert "nonsense" not in str(error.value)
