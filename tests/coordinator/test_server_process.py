"""The Consul server as a child: it is restarted, and its records and rights survive that."""

from __future__ import annotations

import os
import signal

from tests.coordinator.world import API_COMPOSE, Applicant, Running, cluster, cvm
from tests.support import eventually


def consul_child(lead: Running) -> dict[str, object]:
    """Its entry in the status."""
    children = lead.coordinator.document()["children"]
    assert isinstance(children, dict)
    found: dict[str, object] = children["consul"]
    return found


async def test_a_killed_server_comes_back_with_its_records() -> None:
    """SIGKILL: restarted, the holder still holds, the next CVM is admitted, nobody re-attests."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = Applicant(url=lead.url, manifest=mesh.manifest)
        admission = await first.admitted()
        before = consul_child(lead)["pid"]
        assert isinstance(before, int)
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: consul_child(lead)["pid"] not in (None, before), "the server is restarted")
        second = Applicant(url=lead.url, manifest=mesh.manifest, who=cvm(API_COMPOSE, "other"))
        assert (await mesh.retry(second, 20))["peer_id"] == "api-1"
        status, answer = await first.post("renew", {"lease": admission["lease"]})
        assert status == 200, answer
        assert consul_child(lead)["restarts"] == 1


async def test_secrets_are_in_private_files_only() -> None:
    """Nothing secret on the server's command line or in its environment; every file is 0600 in a folder of 0700."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        pid = consul_child(lead)["pid"]
        with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: ASYNC230, PTH123
            shown = line.read() + environ.read()
        config = (lead.config.state_dir / "consul" / "config" / "server.json").read_text()
        import json

        tree = json.loads(config)
        for secret in (tree["encrypt"], tree["acl"]["tokens"]["initial_management"]):
            assert secret.encode() not in shown
        assert lead.config.state_dir.stat().st_mode & 0o777 == 0o700
        for path in (lead.config.state_dir / "consul").iterdir():
            if path.is_file():
                assert path.stat().st_mode & 0o777 == 0o600
        assert not (lead.config.state_dir / "ra-tls.pem").exists()
