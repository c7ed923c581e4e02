"""A stand-in for the Phala provider: its schema and its measured plan-time behaviour, an API that exists in memory.

Terraform reaches it by TF_REATTACH_PROVIDERS, so nothing is downloaded. It says what the real one takes and what it
replaces; whether the real cloud then does it, it cannot say.
"""

from __future__ import annotations

import hashlib
import json
import os
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
_MAP, _LIST = ["map", "string"], ["list", "string"]
_INSTANCE = ("app_id", "created_at", "endpoint", "gateway_base_domain", "gateway_cname", "id", "instance_id",
             "instance_type", "name", "region", "status", "vm_uuid")  # fmt: skip

# name: (type, kind); kinds: R required, O optional, C computed, S sensitive, F (force) a change replaces.
APP: dict[str, tuple[Any, str]] = {
    "name": ("string", "RF"), "size": ("string", "R"), "docker_compose": ("string", "R"), "region": ("string", "OF"),
    "node_id": ("number", "OF"), "image": ("string", "OC"), "disk_size": ("number", "OC"), "kms": ("string", "OCF"),
    "custom_app_id": ("string", "OF"), "nonce": ("number", "OF"), "members": (_LIST, "O"), "env": (_MAP, "O"),
    "encrypted_env": ("string", "OS"), "env_keys": (_LIST, "O"), "env_compose_hash": ("string", "O"),
    "env_transaction_hash": ("string", "O"), "pre_launch_script": ("string", "O"), "public_logs": ("bool", "OC"),
    "public_sysinfo": ("bool", "OC"), "public_tcbinfo": ("bool", "OC"), "gateway_enabled": ("bool", "OC"),
    "secure_time": ("bool", "OC"), "storage_fs": ("string", "OCF"), "listed": ("bool", "OCF"),
    "ssh_authorized_keys": (_LIST, "OF"), "wait_for_ready": ("bool", "OC"), "wait_timeout_seconds": ("number", "OC"),
    "id": ("string", "C"), "app_id": ("string", "C"), "primary_cvm_id": ("string", "C"), "cvm_ids": (_LIST, "C"),
    "instances": (["list", ["object", dict.fromkeys(_INSTANCE, "string")]], "C"), "endpoint": ("string", "C"),
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


@dataclass
class Cloud:
    """What exists: apps by ID, the state of each as Terraform last saw it."""

    attest: Attest
    """From the state of an app to the tcb_info of its first CVM, JSON."""
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """What was asked for: `create phala_app starter-api`."""

    def create(self, kind: str, planned: dict[str, Any]) -> dict[str, Any]:
        """The state of a new resource."""
        made = {name: None if value is UNKNOWN else value for name, value in planned.items()}
        made |= {"status": "running", "gateway_base_domain": GATEWAY, "endpoint": "", "gateway_cname": ""}
        made |= {"wait_for_ready": True, "wait_timeout_seconds": 600}
        digest = hashlib.sha256(f"{kind} {made['name']} {made.get('app_id')}".encode()).hexdigest()
        if kind == "phala_app":
            own = {**dict.fromkeys(_INSTANCE, ""), "name": made["name"], "vm_uuid": f"vm-{digest[:8]}"}
            own["instance_id"] = digest[:40]
            made |= {"app_id": f"app_{digest[-40:]}", "primary_cvm_id": own["vm_uuid"], "cvm_ids": [own["vm_uuid"]]}
            made |= {"id": made["app_id"], "instances": [own], "image": made["image"] or "dstack-0.5.7"}
            self.apps[made["app_id"]] = made
        else:
            made |= {"id": f"{made['app_id']}:{made['name']}", "managed": True, "instance_id": digest[:40]}
            made |= {"vm_uuid": f"vm-{digest[:8]}", "instance_type": "", "region": "", "created_at": ""}
        return made

    def attestation(self, cvm: str) -> dict[str, Any]:
        """The data source of one CVM."""
        app = next(app for app in self.apps.values() if app["primary_cvm_id"] == cvm)
        return {**dict.fromkeys(ATTESTATION), "cvm_id": cvm, "is_online": True, "tcb_info_json": self.attest(app)}


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
        """Nothing changes behind Terraform's back."""
        return message((1, blob(fields(request), 2)))

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
        if prior is None or forced:
            config = unpack(blob(asked, 4, 1))
            computed = [name for name, (_, flags) in attributes.items() if "C" in flags and config[name] is None]
            proposed |= dict.fromkeys(computed, UNKNOWN)
        paths = [(2, message((1, message((1, name))))) for name in forced]
        return message((1, message((1, pack(proposed)))), *paths)

    def ApplyResourceChange(self, request: bytes) -> bytes:  # noqa: N802
        """Creates, changes in place, or removes."""
        asked = fields(request)
        kind = blob(asked, 1).decode()
        prior, planned = unpack(blob(asked, 2, 1)), unpack(blob(asked, 3, 1))
        if planned is None:
            self._cloud.log.append(f"delete {kind} {prior['name']}")
        elif prior is None:
            self._cloud.log.append(f"create {kind} {planned['name']}")
            planned = self._cloud.create(kind, planned)
        else:
            self._cloud.log.append(f"update {kind} {planned['name']}")
            self._cloud.apps |= {planned["app_id"]: planned} if kind == "phala_app" else {}
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
