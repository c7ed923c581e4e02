"""A CVM that is deployed anew with another text of its compose file, as a cloud's update does it. Pure."""

from __future__ import annotations

from dataclasses import replace

from lab.plan import CvmPlan
from lab.tee import DevTee, make_cvm
from topology import render
from topology.compose import ComposeFile, Service, parse
from topology.model import Cluster
from topology.owners import Owners


def revised(cvm: CvmPlan, text: str, owners: Owners, cluster: Cluster, tee: DevTee) -> CvmPlan:
    """`cvm`, the same instance of the same app, with the compose file `text`, into which `owners` are put. ValueError
    when it would run something else: what a lab's containers run was decided when it began.
    """
    compose = render.keyed(parse(text, cvm.compose.path), owners)
    if _runs(compose) != _runs(cvm.compose):
        raise ValueError(
            f"{cvm.compose.path} has other services than when this lab began, and a lab measures only what it runs; "
            "./mesh down, and ./mesh up"
        )
    group = next((it for it in cluster.groups if it.name == cvm.machine.group), None)
    identity = make_cvm(
        tee,
        app_compose=render.app_compose(
            f"{cluster.name}-{cvm.machine.group}", compose, render.environment_names(group), owners=None
        ),
        app_id=cvm.identity.app_id,
        instance_seed=cvm.instance_seed,
        os_version=cvm.identity.os_version,
    )
    return replace(cvm, compose=compose, identity=identity)


def _runs(compose: ComposeFile) -> tuple[Service, ...]:
    """What runs, wherever in the file it stands."""
    return tuple(replace(service, line=0) for service in compose.services)
