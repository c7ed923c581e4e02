"""`lab.agent_tls`: the certificates of GetTlsKey."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from tests.lab.agent_world import NOW, Agent, running


@pytest.fixture(params=["0.5.7", "0.6.0"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent of each OS version."""
    async with running(tmp_path, request.param) as found:
        yield found


async def issued(agent: Agent, tree: dict[str, Any]) -> tuple[x509.Certificate, x509.Certificate, str]:
    """Leaf, CA and key that the agent gives for `tree`."""
    answer = await agent.ask("/GetTlsKey", tree)
    leaf, authority = [x509.load_pem_x509_certificate(pem.encode()) for pem in answer["certificate_chain"]]
    return leaf, authority, answer["key"]


async def test_defaults(agent: Agent) -> None:
    """An empty request gives a certificate for nobody in particular, valid for ten years, under the KMS's CA."""
    leaf, authority, pem = await issued(agent, {})
    leaf.verify_directly_issued_by(authority)
    key = load_pem_private_key(pem.encode(), None)
    assert key.public_key() == leaf.public_key()
    assert leaf.not_valid_before_utc == datetime(1975, 1, 1, tzinfo=UTC)
    assert leaf.not_valid_after_utc == datetime.fromtimestamp(NOW, UTC) + timedelta(days=3650)
    assert [item.oid for item in leaf.extensions] == [ExtensionOID.KEY_USAGE]


async def test_each_call_makes_a_key(agent: Agent) -> None:
    """Keys are fresh, serial numbers too."""
    first, second = await issued(agent, {}), await issued(agent, {})
    assert first[2] != second[2]
    assert first[0].serial_number != second[0].serial_number


async def test_usages_and_subject(agent: Agent) -> None:
    """What was asked for is in the certificate."""
    leaf, _, _ = await issued(agent, {"subject": "api", "usage_server_auth": True, "usage_client_auth": True})
    assert leaf.subject.rfc4514_string() == "CN=api"
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


async def test_alt_names(agent: Agent) -> None:
    """Names go in unchecked; addresses are addresses since 0.6.0 only."""
    names = ["api.mesh", "spiffe://x/y", "10.0.0.1", "::1"]
    leaf, _, _ = await issued(agent, {"alt_names": names})
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if agent.cvm.os_version == "0.5.7":
        assert found.get_values_for_type(x509.DNSName) == names
    else:
        assert found.get_values_for_type(x509.DNSName) == names[:2]
        assert found.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(name) for name in names[2:]]


@pytest.mark.parametrize("tree", [{"subject": "x" * 65}, {"alt_names": ["ä"]}, {"not_after": 2**63}])
async def test_impossible_certificates_are_an_error(agent: Agent, tree: dict[str, Any]) -> None:
    """What cannot be written into a certificate is a 400, not a crash."""
    assert (await agent.post("/GetTlsKey", tree)).status == 400
