"""A stand-in for the Phala provider: its schema and its measured plan-time behaviour, an API that exists in memory.

Terraform reaches it by TF_REATTACH_PROVIDERS, so nothing is downloaded. It says what the real one takes and what it
replaces; whether the real cloud then does it, it cannot say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.terraform.wire import UNKNOWN, blob, fields, message, pack, unpack

SOURCE = "registry.terraform.io/phala-network/phala"
GATEWAY = "gateway.example"
"""Of the node that first slots are on."""
OTHER_GATEWAY = "other-node.example"
"""Of the node that further slots are on: each node of the platform has its own."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{4,62}")
"""Names of slots, checked when they are made (`instanceNamePattern` in the provider's resource_app_instance.go)."""
_MAP, _LIST = ["map", "string"], ["list", "string"]
_INSTANCE = ("app_id", "created_at", "endpoint", "gateway_base_domain", "gateway_cname", "id", "instance_id",
             "instance_type", "name", "region", "status", "vm_uuid")  # fmt: skip

# name: (type, kind); kinds: R required, O optional, C computed, S sensitive, F (force) a change replaces,
# U computed anew at each change: unknown in the plan of it (no UseStateForUnknown in the provider's resource_app.go).
APP: dict[str, tuple[Any, str]] = {
    "name": ("string", "RF"), "size": ("string", "R"), "docker_compose": ("string", "R"), "region": ("string", "OF"),
    "node_id": ("number", "OF"), "image": ("string", "OCU"), "disk_size": ("number", "OC"), "kms": ("string", "OCF"),
    "custom_app_id": ("string", "OF"), "nonce": ("number", "OF"), "members": (_LIST, "O"), "env": (_MAP, "O"),
    "encrypted_env": ("string", "OS"), "env_keys": (_LIST, "O"), "env_compose_hash": ("string", "O"),
    "env_transaction_hash": ("string", "O"), "pre_launch_script": ("string", "O"), "public_logs": ("bool", "OC"),
    "public_sysinfo": ("bool", "OC"), "public_tcbinfo": ("bool", "OC"), "gateway_enabled": ("bool", "OC"),
    "secure_time": ("bool", "OC"), "storage_fs": ("string", "OCF"), "listed": ("bool", "OCF"),
    "ssh_authorized_keys": (_LIST, "OF"), "wait_for_ready": ("bool", "OC"), "wait_timeout_seconds": ("number", "OC"),
    "id": ("string", "C"), "app_id": ("string", "C"), "primary_cvm_id": ("string", "CU"), "cvm_ids": (_LIST, "CU"),
    "instances": (["list", ["object", dict.fromkeys(_INSTANCE, "string")]], "CU"), "endpoint": ("string", "C"),
    "gateway_base_domain": ("string", "C"), "gateway_cname": ("string", "C"), "status": ("string", "C"),
}  # fmt: skip
INSTANCE: dict[str, tuple[Any, str]] = {
    "app_id": ("string", "RF"), "name": ("string", "RF"), "env": (_MAP, "OSF"), "encrypted_env": ("string", "OSF"),
    "docker_compose": ("string", "OF"), "pre_launch_script": ("string", "OF"), "compose_hash": ("string", "OF"),
    "node_id": ("number", "OF"), "wait_for_ready": ("bool", "OC"), "wait_timeout_seconds": ("number", "OC"),
    "id": ("string", "C"), "managed": ("bool", "C"), "vm_uuid": ("string", "C"), "instance_id": ("string", "C"),
    "instance_type": ("string", "C"), "region": ("string", "C"), "status": ("string", "C"), "endpoint": ("string", "C"),
    "gateway_base_domain": ("string", "C"), "gateway_cname": ("string", "C"), "created_at": ("string", "C"),
}  # fmt: skip
ATTESTATION: dict[str, tuple[Any, str]] = {
    "cvm_id": ("string", "R"), "is_online": ("bool", "C"), "is_public": ("bool", "C"), "tcb_info_json": ("string", "C"),
    "app_certificates_json": ("string", "C"), "compose_file": ("string", "C"), "error": ("string", "C"),
    "raw_json": ("string", "C"),
}  # fmt: skip
PROVIDER: dict[str, tuple[Any, str]] = {
    "api_key": ("string", "OS"), "api_prefix": ("string", "O"), "api_version": ("string", "O"),
    "timeout_seconds": ("number", "O"),
}  # fmt: skip
RESOURCES = {"phala_app": APP, "phala_app_instance": INSTANCE}

Attest = Callable[[Mapping[str, Any]], str]


class RefusedError(Exception):
    """The provider or the cloud does not do what was planned; Terraform gets it as a diagnostic."""


@dataclass
class Cvm:
    """One CVM of the cloud."""

    app: str
    name: str
    uuid: str
    instance: str
    gateway: str
    env: dict[str, str]
    """What it was given last."""
    booted: bool = False
    """The platform knows the instance ID once the guest has booted, which is after the create call has ended."""

    def seen(self) -> dict[str, Any]:
        """What the API says of it. Unknown values are null (`nullableString` in the provider's resource_shared.go)."""
        instance = self.instance if self.booted else None
        return {
            **dict.fromkeys(_INSTANCE, ""), "app_id": self.app, "name": self.name, "id": self.uuid,
            "vm_uuid": self.uuid, "instance_id": instance, "gateway_base_domain": self.gateway,
            "status": "running", "gateway_cname": None,
        }  # fmt: skip


@dataclass
class Cloud:
    """What exists: apps by ID, the state of each as Terraform last saw it; CVMs by UUID."""

    attest: Attest
    """From the state of an app to the platform's TcbInfo of its first CVM, JSON."""
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)
    cvms: dict[str, Cvm] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """What was asked for: `create phala_app starter-api`, `env starter-api-1`."""

    def create(self, kind: str, planned: dict[str, Any]) -> dict[str, Any]:
        """The state of a new resource."""
        made = {name: None if value is UNKNOWN else value for name, value in planned.items()}
        made |= {"wait_for_ready": True, "wait_timeout_seconds": 600}
        self._check(kind, made)
        digest = hashlib.sha256(f"{kind} {made['name']} {made.get('app_id')}".encode()).hexdigest()
        if kind == "phala_app":
            made |= {"app_id": f"app_{digest[-40:]}", "image": made["image"] or "dstack-0.5.7"}
        # Nothing is copied from the app: a slot has the environment of its own request (CreateAppInstanceRequest).
        cvm = Cvm(
            app=made["app_id"], name=made["name"], uuid=f"vm-{digest[:8]}", instance=digest[:40],
            gateway=GATEWAY if kind == "phala_app" else OTHER_GATEWAY, env=dict(made["env"] or {}),
        )  # fmt: skip
        self.cvms[cvm.uuid] = cvm
        if kind == "phala_app":
            self.apps[made["app_id"]] = made
            made |= {"id": made["app_id"], "primary_cvm_id": cvm.uuid}
        else:
            made |= {"id": f"{made['app_id']}:{made['name']}", "managed": True}
        return self.refresh(kind, made)

    def _check(self, kind: str, made: dict[str, Any]) -> None:
        if not _NAME.fullmatch(made["name"]):
            raise RefusedError(f"name must be 5-63 characters (got {made['name']!r})")
        if kind == "phala_app":
            if made["kms"] not in (None, "phala"):
                raise RefusedError("the reply has no app_id")
            return
        app = self.apps[made["app_id"]]
        unknown = sorted(set(made["env"] or ()) - set(app["env"]))
        if unknown:
            raise RefusedError(f"env has keys that the app does not allow: {unknown}")
        if made["name"] == app["name"] and made["env"]:
            raise RefusedError("Cannot apply per-instance env to adopted instance")

    def refresh(self, kind: str, state: dict[str, Any]) -> dict[str, Any]:
        """`state` as a read finds it now."""
        if kind == "phala_app":
            own = [cvm for cvm in self.cvms.values() if cvm.app == state["app_id"]]
            first = self.cvms[state["primary_cvm_id"]].seen()
            listed = {"instances": [cvm.seen() for cvm in own], "cvm_ids": [cvm.uuid for cvm in own]}
            shown = {name: first[name] for name in ("endpoint", "gateway_base_domain", "gateway_cname", "status")}
            return {**state, **listed, **shown}
        cvm = next(cvm for cvm in self.cvms.values() if (cvm.app, cvm.name) == (state["app_id"], state["name"]))
        return state | {name: value for name, value in cvm.seen().items() if name in INSTANCE and name != "id"}

    def update(self, prior: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
        """A change in place of an app: a changed environment goes to every slot, one after the other."""
        planned = {name: prior[name] if value is UNKNOWN else value for name, value in planned.items()}
        if prior["env"] != planned["env"]:
            for cvm in (cvm for cvm in self.cvms.values() if cvm.app == planned["app_id"]):
                self.log.append(f"env {cvm.name}")
                cvm.env = dict(planned["env"])
        self.apps[planned["app_id"]] = planned
        return self.refresh("phala_app", planned)

    def delete(self, kind: str, prior: dict[str, Any]) -> None:
        """A resource and its CVM are gone."""
        uuid = prior["primary_cvm_id"] if kind == "phala_app" else prior["vm_uuid"]
        self.cvms.pop(uuid, None)

    def boot(self) -> None:
        """Every CVM has booted, and its instance ID is known from now on."""
        for cvm in self.cvms.values():
            cvm.booted = True

    def attestation(self, uuid: str) -> dict[str, Any]:
        """The data source of one CVM: nothing is measured before it has booted."""
        cvm = self.cvms[uuid]
        state = {**dict.fromkeys(ATTESTATION), "cvm_id": uuid, "is_online": cvm.booted, "is_public": True}
        told = {"tcb_info_json": self.attest(self.apps[cvm.app])} if cvm.booted else {"error": "CVM is not online"}
        return state | told


def _schema(attributes: Mapping[str, tuple[Any, str]]) -> bytes:
    described = [
        message((1, name), (2, json.dumps(kind)), *((4 + index, flag in flags) for index, flag in enumerate("ROCS")))
        for name, (kind, flags) in attributes.items()
    ]
    return message((2, message(*((2, item) for item in described))))


class _Provider:
    """The methods of tfplugin6.Provider; each takes and gives protobuf bytes."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def GetProviderSchema(self, _: bytes) -> bytes:  # noqa: N802 (the protocol's name)
        """The schema of everything."""
        resources = [(2, message((1, name), (2, _schema(it)))) for name, it in RESOURCES.items()]
        data = (3, message((1, "phala_attestation"), (2, _schema(ATTESTATION))))
        return message((1, _schema(PROVIDER)), *resources, data)

    def UpgradeResourceState(self, request: bytes) -> bytes:  # noqa: N802
        """States are of today's schema."""
        return message((1, message((2, blob(fields(request), 3, 1)))))

    def ReadResource(self, request: bytes) -> bytes:  # noqa: N802
        """What the cloud knows by now."""
        asked = fields(request)
        state = self._cloud.refresh(blob(asked, 1).decode(), unpack(blob(asked, 2, 1)))
        return message((1, message((1, pack(state)))))

    def PlanResourceChange(self, request: bytes) -> bytes:  # noqa: N802
        """Computed values are unknown for what is new; what forces a replacement says so."""
        asked = fields(request)
        attributes = RESOURCES[blob(asked, 1).decode()]
        prior, proposed = unpack(blob(asked, 2, 1)), unpack(blob(asked, 3, 1))
        if proposed is None:
            return message((1, message((1, pack(None)))))
        forced = [
            name
            for name, (_, flags) in attributes.items()
            if prior is not None and "F" in flags and prior[name] != proposed[name]
        ]
        if prior != proposed:
            config = unpack(blob(asked, 4, 1))
            anew = "C" if prior is None or forced else "U"
            computed = [name for name, (_, flags) in attributes.items() if anew in flags and config[name] is None]
            proposed |= dict.fromkeys(computed, UNKNOWN)
        paths = [(2, message((1, message((1, name))))) for name in forced]
        return message((1, message((1, pack(proposed)))), *paths)

    def ApplyResourceChange(self, request: bytes) -> bytes:  # noqa: N802
        """Creates, changes in place, or removes."""
        asked = fields(request)
        kind = blob(asked, 1).decode()
        prior, planned = unpack(blob(asked, 2, 1)), unpack(blob(asked, 3, 1))
        try:
            if planned is None:
                self._cloud.log.append(f"delete {kind} {prior['name']}")
                self._cloud.delete(kind, prior)
            elif prior is None:
                self._cloud.log.append(f"create {kind} {planned['name']}")
                planned = self._cloud.create(kind, planned)
            else:
                self._cloud.log.append(f"update {kind} {planned['name']}")
                planned = self._cloud.update(prior, planned) if kind == "phala_app" else planned
        except RefusedError as error:
            # Severity 1 is an error. Nothing was made.
            return message((1, message((1, pack(prior)))), (3, message((1, 1), (2, "refused"), (3, str(error)))))
        return message((1, message((1, pack(planned)))))

    def ReadDataSource(self, request: bytes) -> bytes:  # noqa: N802
        """The attestation of a CVM."""
        return message((1, message((1, pack(self._cloud.attestation(unpack(blob(fields(request), 2, 1))["cvm_id"]))))))

    def nothing(self, _: bytes) -> bytes:
        """Validation and configuration: whatever the schema allows is taken, as the real provider does."""
        return b""

    def __getattr__(self, name: str) -> Callable[[bytes], bytes]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.nothing


_METHODS = ("GetProviderSchema", "ValidateProviderConfig", "ValidateResourceConfig", "ValidateDataResourceConfig",
            "UpgradeResourceState", "ConfigureProvider", "ReadResource", "PlanResourceChange", "ApplyResourceChange",
            "ReadDataSource", "StopProvider")  # fmt: skip


def _handler(call: Callable[[bytes], bytes]) -> Callable[[bytes, object], bytes]:
    return lambda request, _: call(request)


@contextmanager
def serve(folder: Path, cloud: Cloud) -> Iterator[dict[str, str]]:
    """Serves `cloud` on a socket in `folder`; yields the variables with which Terraform finds it."""
    provider = _Provider(cloud)
    handlers = {name: grpc.unary_unary_rpc_method_handler(_handler(getattr(provider, name))) for name in _METHODS}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tfplugin6.Provider", handlers),))
    socket = folder / "provider.sock"
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    reattach = {
        # Test: Terraform watches this process, and leaves its end to us.
        "Protocol": "grpc", "ProtocolVersion": 6, "Pid": os.getpid(), "Test": True,
        "Addr": {"Network": "unix", "String": str(socket)},
    }  # fmt: skip
    try:
        yield {"TF_REATTACH_PROVIDERS": json.dumps({SOURCE: reattach}), "PHALA_CLOUD_API_KEY": "phak_test"}
    finally:
        server.stop(None).wait()
