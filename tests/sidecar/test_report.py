from __future__ import annotations

import json

from admission.clocks import Skew
from peer.link import Health, LinkStatus
from runtime.children import ChildStatus
from sidecar.admission import AdmissionStatus
from sidecar.certificate import begun, heard
from sidecar.identity import make
from sidecar.phases import Report
from sidecar.report import Facts, document
from tests.sidecar.world import DIGEST, given, manifest
from tests.topology.support import opened
from xds.stream import Nack

KEYS = {
    "peer_id", "group", "kind", "phase", "ready", "reasons", "problems", "address", "insecure", "children",
    "admission", "links", "routes", "xds", "log", "certificate", "gossip_ring", "agent_expires_at", "manifest_epoch",
    "manifest_digest", "manifest_notes",
}  # fmt: skip


SIGNED = opened(manifest())
LEAF_KEY = make().public.leaf
CERTIFICATE = heard(begun(given(LEAF_KEY), 0.0, 120.0), given(LEAF_KEY, "e2" * 32, DIGEST, epoch=4), 0.0, 120.0, 0.0)
ADMITTED = AdmissionStatus(
    state="admitted", coordinator="https://one.test", lease_seconds=15, expires_at=9, skew=Skew(5.04, 6.06)
)
LINK = LinkStatus(
    peer_id="api-1",
    public_key="k",
    path="direct",
    health=Health.UP,
    handshake_age_s=1.5,
    endpoint="1.2.3.4:5",
    round_trip_s=0.1,
    mtu=1440,
)


def test_document_has_the_shape_that_the_architecture_promises() -> None:
    """Every part of the contract, with values, and it is JSON."""
    shown = document(
        Facts(
            peer_id="api-0",
            group="api",
            address="100.96.0.10",
            report=Report(phase="ready", reasons=()),
            insecure=("quotes",),
            signed=SIGNED,
            certificate=CERTIFICATE,
            gossip_ring="1+0",
            agent_expires_at=7,
            endpoints={"api": ("api-0", "api-1")},
            conflicts={"api": ("api-0", "api-1")},
            children={"envoy": ChildStatus(pid=7, restarts=1, state="running", last_exit="SIGKILL")},
            admission=ADMITTED,
            links=(LINK,),
            lost=frozenset({"k"}),
            xds_version="v1",
            nacks=(Nack(type_url="type.googleapis.com/envoy.Listener", names=("l",), message="no", version="v0"),),
            lines_lost=2,
            lines_unsaid=3,
            problems=("names: x",),
        )
    )
    assert set(shown) == KEYS
    assert shown["ready"] is True
    assert shown["certificate"] == {
        "manifest_digest": "d1" * 6,
        "expires_at": CERTIFICATE.leaf.expires_at,
        "authorities": ["e2" * 6, "d1" * 6],
    }
    assert shown["children"] == {"envoy": {"pid": 7, "restarts": 1, "state": "running", "last_exit": "SIGKILL"}}
    assert shown["admission"]["coordinator"] == "https://one.test"
    assert shown["admission"]["clock_ahead_s"] == {"least": 5.0, "most": 6.1}
    assert shown["links"] == [{"peer_id": "api-1", "path": "direct", "lost": True, "handshake_age_s": 1.5, "mtu": 1440}]
    assert shown["routes"] == [
        {
            "name": "api",
            "role": None,
            "vip": "127.10.0.1",
            "port": 8080,
            "endpoints": ["api-0", "api-1"],
            "conflict": ["api-0", "api-1"],
            "may_call": True,
        }
    ]
    assert shown["xds"] == {"version": "v1", "nacks": [{"type": "Listener", "reason": "no"}]}
    assert shown["log"] == {"lines_lost": 2, "lines_unsaid": 3}
    assert (shown["manifest_epoch"], shown["gossip_ring"], shown["agent_expires_at"]) == (3, "1+0", 7)
    assert (shown["manifest_digest"], shown["manifest_notes"]) == (SIGNED.digest[:12], [])
    json.dumps(shown)


def test_document_of_a_process_that_has_just_started() -> None:
    """The same keys, with nothing known yet."""
    shown = document(
        Facts(
            peer_id=None,
            group="api",
            address=None,
            report=Report(phase="identity", reasons=("identity: has not begun",)),
            insecure=(),
            signed=SIGNED,
            certificate=None,
            gossip_ring="",
            agent_expires_at=None,
            endpoints={},
            conflicts={},
            children={},
            admission=None,
            links=(),
            lost=frozenset(),
            xds_version=None,
            nacks=(),
            lines_lost=0,
            lines_unsaid=0,
            problems=(),
        )
    )
    assert set(shown) == KEYS
    assert shown["ready"] is False
    assert shown["admission"]["state"] == "waiting"
    assert shown["routes"][0]["endpoints"] == shown["routes"][0]["conflict"] == []
