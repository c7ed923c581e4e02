"""`lab.tee`: deterministic across processes, and honest about being a development TEE."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from cryptography import x509

from evidence.collateral import FixedCollateral
from evidence.verify import Verifier
from lab.agent_tls import event_items
from lab.tee import OS_VERSIONS, CvmIdentity, DevTee, machine, make_cvm
from tests.support import ROOT

NOW = 1_800_000_000.0
COMPOSE = '{"name": "api", "runner": "docker-compose"}'


@pytest.fixture
def tee() -> DevTee:
    """A simulated TEE."""
    return DevTee(b"tee tests")


def boot(tee: DevTee, *, seed: bytes = b"1", app_id: str | None = None, compose: str = COMPOSE) -> CvmIdentity:
    """A CVM."""
    return make_cvm(tee, app_compose=compose, app_id=app_id, instance_seed=seed, os_version="0.6.0")


def test_two_processes_with_one_seed_agree(tee: DevTee) -> None:
    """Root, collateral and quote are the same bytes in another process."""
    program = """
import hashlib
from lab.tee import DevTee, make_cvm
tee = DevTee(b"tee tests")
compose = '{"name": "api", "runner": "docker-compose"}'
cvm = make_cvm(tee, app_compose=compose, app_id=None, instance_seed=b"1", os_version="0.6.0")
parts = (tee.root_der, tee.collateral_json(1800000000.0).encode(), tee.quote(cvm.measurements, b"x"))
print(hashlib.sha256(b"".join(parts)).hexdigest(), cvm.app_key.reveal())
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    cvm = boot(tee)
    parts = (tee.root_der, tee.collateral_json(NOW).encode(), tee.quote(cvm.measurements, b"x"))
    assert other.stdout.split() == [hashlib.sha256(b"".join(parts)).hexdigest(), cvm.app_key.reveal()]


def test_other_seeds_share_nothing(tee: DevTee) -> None:
    """Two labs on one machine trust each other in nothing."""
    other = DevTee(b"other")
    assert tee.root_der != other.root_der
    assert tee.key_provider != other.key_provider
    assert boot(tee).app_key != boot(other).app_key


def test_every_certificate_says_development(tee: DevTee) -> None:
    """Whoever meets one of them in the wild can tell what it is; the PCK CA is a Platform CA."""
    parts = tee.collateral(NOW)
    chains = parts["pck_crl_issuer_chain"] + parts["tcb_info_issuer_chain"]
    subjects = [item.subject.rfc4514_string() for item in x509.load_pem_x509_certificates(chains.encode())]
    assert all("cvm-mesh DEVELOPMENT" in subject for subject in subjects)
    assert "PCK Platform CA" in subjects[0]


async def test_each_cvm_is_on_a_machine_of_its_own(tee: DevTee) -> None:
    """Which its quote names, after a revision of its compose file, too: so that one machine can be revoked."""
    verifier = Verifier(collateral=FixedCollateral(tee.collateral_json(NOW)), root_ca_der=tee.root_der)
    found = []
    for cvm in (boot(tee), boot(tee, seed=b"2"), boot(tee, compose=COMPOSE + " ")):
        evidence = await verifier.verify(
            quote=tee.quote(cvm.measurements, bytes(64)),
            event_log=json.dumps(event_items(cvm.boot_events, stripped=True)),
            vm_config=cvm.vm_config,
            report_data=bytes(64),
            now=NOW,
        )
        found.append(evidence.device)
    assert found == [machine(b"1").hex(), machine(b"2").hex(), machine(b"1").hex()]
    assert found[0] not in (found[1], "00" * 16)


def test_replicas_share_the_apps_key_and_nothing_else(tee: DevTee) -> None:
    """As a real KMS derives: by app id alone, whatever the compose revision."""
    first, second = boot(tee), boot(tee, seed=b"2")
    revised = boot(tee, app_id=first.app_id, compose=COMPOSE + " ")
    stranger = boot(tee, compose=COMPOSE + "\n")
    assert first.app_key == second.app_key == revised.app_key
    assert first.instance_id != second.instance_id
    assert first.compose_hash != revised.compose_hash
    assert stranger.app_key != first.app_key


def test_a_cvm_without_app_id_takes_it_from_its_compose_file(tee: DevTee) -> None:
    """The first 20 bytes of the hash of the file's bytes."""
    digest = hashlib.sha256(COMPOSE.encode()).hexdigest()
    cvm = boot(tee)
    assert (cvm.app_id, cvm.compose_hash, cvm.app_name) == (digest[:40], digest, "api")


@pytest.mark.parametrize("os_version", OS_VERSIONS)
@pytest.mark.parametrize("development", [False, True])
def test_images_differ_in_every_register(tee: DevTee, os_version: str, development: bool) -> None:
    """Version and development flag both show in what the image measures."""
    images = [tee.os_image(version, dev) for version in OS_VERSIONS for dev in (False, True)]
    image = tee.os_image(os_version, development)
    assert image.development is development
    for field in ("os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2"):
        assert [getattr(item, field) for item in images].count(getattr(image, field)) == 1
    cvm = make_cvm(
        tee, app_compose=COMPOSE, app_id=None, instance_seed=b"", os_version=os_version, development=development
    )
    assert cvm.os_image == image
    assert cvm.measurements.rtmr2.hex() == image.rtmr2


def test_the_key_is_not_printed(tee: DevTee) -> None:
    """A CVM's identity can be logged."""
    cvm = boot(tee)
    assert cvm.app_key.reveal() not in repr(cvm)


def test_collateral_is_made_for_the_day(tee: DevTee) -> None:
    """Like Intel's it is issued and expires, so caches have something to do."""
    today, tomorrow = tee.collateral(NOW), tee.collateral(NOW + 86400)
    assert today == tee.collateral(NOW + 1)
    assert json.loads(today["tcb_info"])["nextUpdate"] < json.loads(tomorrow["tcb_info"])["nextUpdate"]


@pytest.mark.parametrize(
    "arguments",
    [{"os_version": "0.4.0"}, {"app_id": "abcd"}, {"app_id": "zz" * 20}],
)
def test_impossible_cvms_are_refused(tee: DevTee, arguments: dict[str, str]) -> None:
    """A typo in a lab's plan does not become a CVM."""
    settings = {"app_id": None, "os_version": "0.6.0", **arguments}
    with pytest.raises(ValueError):  # noqa: PT011 - the kinds differ, the type is the contract
        make_cvm(tee, app_compose=COMPOSE, instance_seed=b"", **settings)  # type: ignore[arg-type]


def test_report_data_has_64_bytes(tee: DevTee) -> None:
    """More does not fit a report."""
    with pytest.raises(ValueError, match="64"):
        tee.quote(boot(tee).measurements, bytes(65))
