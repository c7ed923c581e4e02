from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_netlink_works_with_a_part_of_pyroute2() -> None:
    """What VIPs and link need loads and answers, and most of pyroute2 stays out."""
    code = (
        "import sys; from sidecar import modules; modules.lean_netlink()\n"
        "import sidecar.link\n"
        "from pyroute2 import AsyncIPRoute, AsyncWireGuard, IPRoute, NetNS\n"
        "with IPRoute() as link: assert link.link_lookup(ifname='lo') == [1]\n"
        "print('pyroute2.ndb' in sys.modules)"
    )
    assert python(code).split() == ["False"]


def test_every_name_that_our_code_takes_from_pyroute2_is_listed() -> None:
    """A new use of pyroute2 in the sidecar's packages has to be added to NETLINK."""
    import re

    from sidecar.modules import NETLINK

    used: set[str] = set()
    for package in ("vip", "peer", "sidecar"):
        for path in (ROOT / package).glob("*.py"):
            for names in re.findall(r"from pyroute2 import ([\w, ]+)", path.read_text(encoding="utf-8")):
                used |= {name.strip() for name in names.split(",")}
    assert used <= set(NETLINK)


def test_after_the_real_package_nothing_is_replaced() -> None:
    """A process that has loaded pyroute2 already keeps it."""
    code = "import pyroute2; from sidecar import modules; modules.lean_netlink(); print(hasattr(pyroute2, 'NDB'))"
    assert python(code).split() == ["True"]


def test_heavy_modules_load() -> None:
    """load_heavy() imports the xDS server."""
    assert python(
        "import sys; from sidecar import modules; modules.load_heavy(); print('xds.server' in sys.modules)"
    ) == ("True\n")


def test_warm_makes_the_messages_of_a_snapshot() -> None:
    """After warm() no class is left to be made by a first snapshot with every kind of entry."""
    code = (
        "from sidecar import modules\n"
        "modules.load_heavy(); modules.warm()\n"
        "from xds import protos, snapshot\n"
        "from tests.xds.entries import ingress, route, spec\n"
        "late = []\n"
        "protos._complete = lambda cls, options: late.append(cls.__name__)\n"
        "snapshot.build(spec(route(), ingress('spiffe://mesh/a')))\n"
        "print(late)"
    )
    assert python(code) == "[]\n"


def test_aiohttp_loads_without_authorities_and_then_trusts_nobody() -> None:
    """What asks for no context of its own is refused, rather than trusted; everybody else's contexts are as ever."""
    code = (
        "import ssl\n"
        "before = ssl.create_default_context().cert_store_stats()\n"
        "from sidecar import modules; modules.lean_aiohttp()\n"
        "from aiohttp import connector\n"
        "default = connector._SSL_CONTEXT_VERIFIED\n"
        "print(default.cert_store_stats()['x509'], default.verify_mode.name, default.check_hostname)\n"
        "print(ssl.create_default_context().cert_store_stats() == before)"
    )
    assert python(code) == "0 CERT_REQUIRED True\nTrue\n"
