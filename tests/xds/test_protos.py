"""The lean import gives the same messages and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

_SAME = """
import warnings, sys
warnings.simplefilter("ignore")
if {plain}:
    import pydantic, betterproto2, envoy_data_plane.envoy.config.cluster.v3
from xds import protos
from tests.xds.entries import ingress, outside, route, spec
from xds.snapshot import build
snapshot = build(spec(route(), outside(), ingress("spiffe://mesh/a")))
import pydantic.dataclasses
print(pydantic.dataclasses.is_pydantic_dataclass(protos.Cluster), snapshot.version)
"""


def _version(plain: bool) -> tuple[str, str]:
    """(whether messages are pydantic classes, version of a snapshot), in a process of its own."""
    script = _SAME.format(plain=plain)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    pydantic, version = done.stdout.split()
    return pydantic, version


def test_standard_and_pydantic_classes_give_the_same_bytes() -> None:
    """The lean form is the same wire format; with the libraries loaded as they are, everything works too."""
    lean, full = _version(plain=False), _version(plain=True)
    assert (lean[0], full[0]) == ("False", "True")
    assert lean[1] == full[1]


def test_the_stand_ins_are_gone_after_the_import() -> None:
    """Whoever imports pydantic or grpclib afterwards gets the real ones, and neither was loaded for us."""
    script = (
        "import sys, xds.protos\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('pydantic', 'pydantic_core', 'grpclib')))\n"
        "import grpclib.server, pydantic\n"
        "print(pydantic.BaseModel.__name__, grpclib.server.Server.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "BaseModel Server"]


def test_only_what_is_used_becomes_a_dataclass() -> None:
    """Loading makes none, so a start does not pay for 500 classes; one that is asked for its fields is whole."""
    script = (
        "from dataclasses import fields\n"
        "from xds import protos\n"
        "names = [name for name in protos.__all__ if '__init__' in vars(getattr(protos, name))]\n"
        "waiting = [name for name in names if type(vars(getattr(protos, name))[protos._FIELDS]) is not dict]\n"
        "print(names == waiting, len(waiting) > 40)\n"
        "print([field.name for field in fields(protos.Percent)], protos.Percent(value=2) == protos.Percent(value=2))\n"
        "print(protos.SocketAddress.parse(bytes(protos.SocketAddress(address='a', port_value=1))).address)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["True True", "['value'] True", "a"]


def test_a_class_is_completed_once_by_several_threads() -> None:
    """A thread may build beside the event loop: a second completion would find the first one's leftovers."""
    script = (
        "import threading\n"
        "from xds import protos\n"
        "gate, made = threading.Barrier(8), []\n"
        "def make():\n"
        "    gate.wait()\n"
        "    made.append(bytes(protos.Cluster(name='c', lb_policy=protos.ClusterLbPolicy.RANDOM)))\n"
        "threads = [threading.Thread(target=make) for _ in range(8)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "print(len(made), len(set(made)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["8", "1"], "")


def test_types_of_fields_are_read_when_a_message_is_parsed() -> None:
    """Writing needs none of them; parsing gives back nested messages and enumerations as they were."""
    script = (
        "from xds import protos\n"
        "place = protos.Address(socket_address=protos.SocketAddress(address='a', port_value=1))\n"
        "end = protos.LbEndpoint(endpoint=protos.LbAddress(address=place))\n"
        "ends = [protos.LocalityLbEndpoints(lb_endpoints=[end])]\n"
        "made = protos.ClusterLoadAssignment(cluster_name='c', endpoints=ends)\n"
        "cluster = protos.Cluster(name='c', lb_policy=protos.ClusterLbPolicy.RANDOM, load_assignment=made)\n"
        "data = bytes(cluster)\n"
        "print(len(protos.Cluster._betterproto.cls_by_field))\n"
        "again = protos.Cluster.parse(data)\n"
        "print(again == cluster, type(again.load_assignment) is protos.ClusterLoadAssignment, again.lb_policy.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True", "RANDOM"]
