from __future__ import annotations

from sidecar.registration import is_ours_to_replace, listening, not_listening, service_id, stub
from tests.sidecar.world import backend

API = backend("api")


def test_platform_service_passes_from_the_first_moment() -> None:
    """Registered when its backend was seen to listen: address, port and a TCP check."""
    assert listening(API, "api-0", "100.96.0.10", 4) == {
        "ID": "api-api-0",
        "Name": "api",
        "Address": "100.96.0.10",
        "Port": 20001,
        "Tags": [],
        "Meta": {"peer-id": "api-0", "owner": "platform"},
        "EnableTagOverride": False,
        "Checks": [
            {
                "CheckID": "api-api-0:tcp:4",
                "Name": "api listens",
                "TCP": "127.0.0.1:8080",
                "Interval": "1s",
                "Timeout": "1s",
                "Status": "passing",
            }
        ],
    }


def test_backend_that_does_not_listen_is_critical() -> None:
    """Nothing probes it."""
    body = not_listening(API, "api-0", "100.96.0.10")
    assert body["Checks"][0]["Status"] == "critical"
    assert "TCP" not in body["Checks"][0]


def test_stub_is_critical_without_role_and_marked() -> None:
    """A workload-owned service starts critical and without tags."""
    body = stub(backend("pg", owner="workload"), "pg-0", "100.96.0.10")
    assert body["Tags"] == []
    assert body["Checks"][0]["Status"] == "critical"
    assert body["Port"] == 20001
    assert is_ours_to_replace(body)


def test_what_a_workload_wrote_is_not_ours_to_replace() -> None:
    """Only nothing, or a stub, may be written over."""
    assert is_ours_to_replace(None)
    assert not is_ours_to_replace({"ID": "pg-pg-0", "Meta": {"role": "master"}})
    assert not is_ours_to_replace({"ID": "pg-pg-0", "Meta": None})


def test_service_id_is_service_and_peer() -> None:
    """Unique in the cluster, since a service may have an instance on every CVM."""
    assert service_id(API, "api-1") == "api-api-1"
