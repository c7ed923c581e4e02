"""What a lab says of its apps is what Terraform says of a cloud's: the same review reads both."""

from __future__ import annotations

import json
from dataclasses import replace

from lab import deployment
from lab.revisions import revised
from lab.tee import DevTee
from meshctl import manifest_facts as facts
from tests.lab.test_plan import plan
from topology import render
from topology.owners import Owners
from topology.render import owners_of, with_owners


def owners() -> Owners:
    """Whose key the plan has put into the compose files."""
    found = owners_of(plan().cvms[0].compose.text)
    assert found is not None
    return found


def test_a_labs_manifest_is_what_its_report_gives() -> None:
    """The one that the lab begins with: nothing of it is known otherwise."""
    report = facts.read(json.dumps(deployment.report(plan())))
    cluster = plan().cluster
    files = {"coordinator": cluster.coordinator_compose, **{group.name: group.compose for group in cluster.groups}}
    reviewed = facts.review(
        cluster, report, {name: with_owners(path.read_text(), owners()) for name, path in files.items()},
        images=None, pre_launch=frozenset(), earlier=None, owners=owners(), after=None,
    )  # fmt: skip
    made = render.manifest(cluster, reviewed.deployment)
    assert made == plan().manifest


def test_every_cvm_of_an_app_is_attested() -> None:
    """One of two has been deployed anew."""
    before = plan()
    cvm = next(it for it in before.cvms if it.machine.name == "worker-cvm1")
    text = cvm.compose.path.read_text()
    after = revised(cvm, f"{text}# changed\n", owners(), before.cluster, DevTee(b"seed" * 8))
    report = deployment.report(replace(before, cvms=tuple(after if it is cvm else it for it in before.cvms)))
    worker = report["apps"]["worker"]
    texts = [json.loads(it)["app_compose"] for it in (worker["attestation"], *worker["others"])]
    assert ["# changed" in it for it in texts] == [False, True]
    assert report["apps"]["api"]["others"]
