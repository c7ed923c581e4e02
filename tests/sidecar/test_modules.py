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
