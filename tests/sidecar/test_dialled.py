from __future__ import annotations

import dataclasses

from sidecar.desired import desired
from sidecar.dialled import dialled
from tests.sidecar.test_desired import TO_BANK, dialling, world
from tests.topology.certificates import certificate
from topology.addresses import DNS_ADDRESS
from xds.spec import Endpoint, Outside

PINNED = dataclasses.replace(
    TO_BANK, name="own", listen="127.137.0.1:444", remote="[2001:db8::1]:8443", sni="own.example", ca=certificate()
)


def test_an_egress_to_the_web_leads_outside() -> None:
    """To the host of its remote, as whom its name says, by pinned roots or the machine's; names are asked for at the
    sidecar's DNS."""
    spec = desired(world(dialling(TO_BANK, PINNED), roots_file="/roots.crt")).spec
    assert spec is not None
    assert spec.resolver == Endpoint(DNS_ADDRESS, 53)
    assert spec.outside == (
        Outside(
            name="bank",
            listen=Endpoint("127.137.0.1", 443),
            host="bank.example.com",
            port=443,
            server_name="bank.example.com",
            roots_file="/roots.crt",
        ),
        Outside(
            name="own",
            listen=Endpoint("127.137.0.1", 444),
            host="2001:db8::1",
            port=8443,
            server_name="own.example",
            roots_pem=certificate(),
        ),
    )


def test_a_machine_without_roots_leaves_out_what_needs_them() -> None:
    """And names it; what pins its own, and the mesh, go on."""
    found = desired(world(dialling(TO_BANK, PINNED)))
    assert found.rootless == ("bank",)
    assert found.spec is not None
    assert [each.name for each in found.spec.outside] == ["own"]
    assert dialled((PINNED,), None).rootless == ()
