"""The second priority of a local server's cluster."""

from __future__ import annotations

import struct

from tests.xds.entries import ingress
from xds import refusal, resources


def test_the_local_server_comes_first_and_the_listener_that_resets_second() -> None:
    """Only a server that is put aside is replaced, and the listener itself can never be put aside beside it."""
    cluster = resources.ingress_cluster(ingress())
    assert cluster.load_assignment is not None
    assert [locality.priority for locality in cluster.load_assignment.endpoints] == [0, 1]
    found = cluster.outlier_detection
    assert found is not None
    assert (found.consecutive_local_origin_failure, found.max_ejection_percent) == (1, 50)


def test_the_listener_lingers_for_no_time() -> None:
    """On and 0 s (struct linger): its connections are closed by a reset."""
    (option,) = refusal.listener("127.10.0.54").socket_options
    assert option.buf_value == struct.pack("ii", 1, 0)


def test_its_port_is_no_ephemeral_one() -> None:
    """Connections to local servers come from the same address."""
    assert refusal.PORT > 60999
