"""What a lab says of the apps that run in it, in the words in which Terraform reports of a cloud's: the output
`deployment` of terraform/phala. Pure.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from lab.agent_tls import event_items
from lab.plan import GATEWAY_BASE, CvmPlan, LabPlan
from lab.tee import CvmIdentity
from topology.model import COORDINATOR, Group
from topology.render import environment_names


def report(plan: LabPlan) -> dict[str, Any]:
    """The tree of the output. Every CVM is attested; a cloud shows the first one of each app only."""
    groups: dict[str, Group | None] = {COORDINATOR: None, **{group.name: group for group in plan.cluster.groups}}
    apps = {
        name: _app(group, (cvm for cvm in plan.cvms if cvm.machine.group == name)) for name, group in groups.items()
    }
    return {
        "format": 1,
        "cluster": plan.cluster.name,
        "coordinator_urls": [peer.url for peer in plan.manifest.coordinators.peers],
        "apps": apps,
        "rendezvous": [{"public_key": it.public_key, "endpoint": it.endpoint} for it in plan.manifest.rendezvous],
        "simulated": True,
        "tcb": dataclasses.asdict(plan.manifest.references[0].tcb),
    }


def _app(group: Group | None, cvms: Iterable[CvmPlan]) -> dict[str, Any]:
    first, *others = cvms
    return {
        "app_id": first.identity.app_id,
        "name": first.identity.app_name,
        "environment": list(environment_names(group)),
        "instance_ids": [cvm.identity.instance_id for cvm in (first, *others)],
        "attestation": tcb_info(first.identity),
        "others": [tcb_info(cvm.identity) for cvm in others],
        "complaint": None,
        "gateways": [GATEWAY_BASE],
    }


def tcb_info(cvm: CvmIdentity) -> str:
    """The platform's `TcbInfo` of `cvm`, JSON: exactly the fields of the published schema.

    Source: `TcbInfoSchema` of @phala/cloud (Phala-Network/phala-cloud, js/), the action for /cvms/{id}/attestation. It
    has no compose hash and no OS image hash, unlike the guest agent's answer to Info.
    """
    measured = cvm.measurements
    registers = {name: getattr(measured, name).hex() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}
    return json.dumps(
        {
            **registers,
            "rootfs_hash": None,
            "event_log": event_items(cvm.boot_events, stripped=False),
            "app_compose": cvm.app_compose,
        }
    )
