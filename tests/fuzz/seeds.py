"""`python -m tests.fuzz.seeds`: writes the inputs that harnesses begin with, out of what the programs themselves make.

To be run after a form has changed; what a finding left in the corpus is not touched.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from dnslib import EDNS0, QTYPE, RR, A, DNSRecord

from admission.protocol import Renewal
from coordinator import leases, rotation
from coordinator.leases import Lease
from coordinator.registry import encode_peer
from coordinator.slots import Holder
from lab.agent_tls import attestation
from peer import control
from runtime import gossip
from tests.coordinator.alone import FIRST
from tests.coordinator.world import OWNER as COORDINATOR_OWNER
from tests.coordinator.world import encode, make_boot
from tests.evidence.test_ratls import new_style, old_style, quoted
from tests.evidence.world import boot
from tests.fuzz import network, partners, proofs
from tests.fuzz.owners import HEAD
from tests.fuzz.registry import CORPUS, GOOD, HARNESSES
from tests.sidecar.world import DIGEST, NOW, OWNER, OWNER_KEY, granted, health, kv, kv_peers, peer, published
from tests.test_boundaries import ADMISSION
from tests.topology.support import COMPOSE, COORDINATOR, after, group
from topology.envelope import seal
from topology.manifest import encode as encode_manifest
from xds.requests import DeltaDiscoveryRequest, Node, Status
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

NEXT = after(HEAD, leaf_hours=9)
KEY = base64.b64encode(bytes(range(1, 33))).decode()


def as_json(tree: object) -> bytes:
    """As programs write it."""
    return json.dumps(tree, separators=(",", ":")).encode()


def _owners() -> Iterator[tuple[str, bytes]]:
    signed = seal(HEAD.manifest, OWNER).encode()
    yield "envelope", signed
    yield "envelope", seal(HEAD.manifest).encode()
    yield "manifest", encode_manifest(NEXT)
    yield "chain", seal(NEXT, OWNER).encode()
    yield "chain", signed + b"\n" + seal(NEXT, OWNER).encode()
    yield "owners", OWNER_KEY.encode()
    yield "owners", f"1 of {OWNER_KEY}".encode()
    yield "owner_key", b"\1" + OWNER.public_key().public_bytes_raw()
    yield "servicemesh", b"\0one#127.137.0.1:8081#emoji:8080##two#127.137.0.2:8082#voting:8080"
    yield "servicemesh", b"\1web#443#true##off#8080#false"
    for name in ("web.example", "*.web.example", "2001:db8::1", "192.0.2.1", "spiffe://demo/api", "https://a.b/c"):
        yield "names", name.encode()
    yield "places", b"\0127.137.0.1:8081"
    yield "places", b"\1bank.example.com:443"
    yield "places", b"\1[2001:db8::1]:443"
    yield "places", b"\2" + granted(proofs.LEAF_KEY)["authorities_pem"].encode()
    cluster = f"locals {{\n  workload_groups = {{{group('app', replicas='var.n')}  }}\n}}\n"
    yield "cluster", b"\0" + cluster.replace("var.n", "1 + 0").encode()
    yield "cluster", b"\0" + cluster.replace("var.n", "2").encode()
    yield "cluster", b"\1" + b'variable "cluster_name" {\n  type = string\n  default = "demo"\n}\n'
    yield "cluster", b"\2" + b'cluster_name = "other"\n'
    yield "compose", b"\0" + COMPOSE.encode()
    yield "compose", b"\1" + COORDINATOR.encode()


def _proofs() -> Iterator[tuple[str, bytes]]:
    sent = proofs.evidence()
    yield "quote", sent.quote
    yield "quote_library", sent.quote
    yield "event_log", b"\0" + sent.event_log.encode()
    yield "event_log", b"\1" + sent.vm_config.encode()
    for at, (name, answer) in enumerate((each, proofs.pccs()[each]) for each in proofs.PARTS):
        assert name
        yield "collateral", bytes((at,)) + answer
    yield "bundle", proofs.coordinator().answer(proofs.NONCE)[0]
    cvm = boot(proofs.tee())
    yield "ratls", new_style(proofs.tee(), cvm)
    yield "ratls", old_style(proofs.tee(), cvm)
    yield "scale", attestation(quoted(proofs.tee(), cvm), cvm.boot_events, b"", cvm.vm_config)
    answer = granted(proofs.LEAF_KEY)
    yield "certificates", b"\0" + answer["leaf_pem"].encode()
    yield "certificates", b"\1" + answer["authorities_pem"].encode()
    yield "certificates", b"\2" + published(proofs.LEAF_KEY).encode()
    yield "certificate", b"\0" + _der(answer["leaf_pem"])
    yield "certificate", b"\1" + _der(answer["authorities_pem"])
    yield "public_key", base64.b64decode(proofs.LEAF_KEY)
    lease = Lease(peer_id="api-0", group="api", instance_id="ab" * 20, boot_key=KEY)
    word = leases.seal(lease, proofs.LEASE_KEY).reveal()
    yield "lease", b"\0" + word.encode()
    yield "lease", b"\1" + base64.urlsafe_b64decode(word.partition(".")[0] + "==")


def _der(pem: str) -> bytes:
    first = pem.partition("-----END")[0]
    return base64.b64decode("".join(first.splitlines()[1:]))


def _network() -> Iterator[tuple[str, bytes]]:
    for name in ("api", "api.mesh", "api-0.peer.mesh", "_api._tcp.mesh", "Example.org"):
        for kind in ("A", "SRV"):
            record = DNSRecord.question(name, kind)
            record.add_ar(EDNS0(udp_len=1232))
            yield "dns_query", bytes(record.pack())
    sent = network.question()
    reply = DNSRecord.parse(sent.wire).reply(aa=0)
    reply.add_answer(RR("example.org", QTYPE.A, ttl=60, rdata=A("192.0.2.1")))
    wire = bytes(reply.pack())
    yield "dns_reply", b"\0" + wire[2:12] + wire[sent.question_end :]
    yield "dns_reply", b"\1" + wire
    yield "resolv_conf", b"nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:5\n"
    table = control.Table(index=5, mappings={KEY: "192.0.2.1:51820"}, relays={KEY: 40000})
    yield "rendezvous", b"\0" + control.encode_table(table)
    yield "rendezvous", b"\1" + b'{"port": 40000}'
    yield "rendezvous", b"\2" + control.encode_relay_request(KEY)
    for name in ("probe", "relay"):
        for kind in range(1, 6):
            yield name, bytes((kind, 0, 0, 0)) + (9).to_bytes(8, "big")
        yield name, bytes((4, 1, 0, 16)) + (10).to_bytes(8, "big") + bytes(16)
    yield "relay", b"\4\0\0\0" + bytes(60)
    yield "uapi", _device().encode()
    yield "gossip", b"\0" + gossip.seal(network.GOSSIP_KEY, gossip.ping("api-0"), bytes(gossip.NONCE))
    yield "gossip", b"\1\2" + gossip.packed({"SeqNo": 1})
    yield "gossip", b"\1\x09" + b"\x82\xa4Algo\x00\xa3Buf\xa6" + bytes((0, 5, 2, 0, 0, 0))
    delta = DeltaDiscoveryRequest
    yield "xds", _framed(
        delta(type_url=CLUSTER), delta(type_url=LISTENER), delta(type_url=CLUSTER, response_nonce="1"),
        delta(type_url=ENDPOINT, resource_names_subscribe=["egress/api", "no"]),
        delta(type_url=ENDPOINT, resource_names_unsubscribe=["no"]),
        delta(type_url=LISTENER, response_nonce="2", error_detail=Status(message="egress/api is wrong")),
    )  # fmt: skip
    yield "xds", _framed(
        delta(type_url=CLUSTER, node=Node(id="me"), initial_resource_versions={"egress/gone": "1"}),
    )  # fmt: skip


def _framed(*requests: Any) -> bytes:
    sent = [bytes(each) for each in requests]
    return b"".join(len(each).to_bytes(2, "big") + each for each in sent)


def _device() -> str:
    lines = (
        f"private_key={bytes(range(32)).hex()}", "listen_port=51820", f"public_key={bytes(range(1, 33)).hex()}",
        "endpoint=192.0.2.1:51820", "last_handshake_time_sec=1800000000", "last_handshake_time_nsec=5", "rx_bytes=7",
        "tx_bytes=8", "persistent_keepalive_interval=25", "allowed_ip=100.96.0.10/32", "protocol_version=1", "errno=0",
    )  # fmt: skip
    return "\n".join(lines) + "\n\n"


def _coordinators() -> Iterator[tuple[str, bytes]]:
    answer = {**ADMISSION, **granted(proofs.LEAF_KEY)}
    renewal = Renewal(lease_seconds=15.0, manifest_epoch=3, gossip_keys=("A" * 43 + "=",), gossip_ring="0")
    head = {"epoch": 4, "digest": DIGEST, "envelope": seal(NEXT, OWNER)}
    said: tuple[object, ...] = (
        {"nonce": "ab" * 32, "peer_id": "api-0", "expires_in": 60},
        answer,
        dataclasses.asdict(renewal),
        {"records": True, "led": True, "term": 3, "index": 9, "voters": ["100.96.0.9"], "room": False},
        head,
        {"manifests": [head], "more": False},
    )
    for at, each in enumerate(said):
        yield "coordinator_answer", bytes((at,)) + as_json(each)
    lease = {"lease": "a.b", "trusts": "", "gossip_ring": ""}
    asked: tuple[object, ...] = (
        {"group": "api", "instance_id": "ab" * 20},
        partners.applicant().evidence(_binding(), "ab" * 32) | {"proposed": True},
        lease,
        lease,
        {"lease": "a.b", "server_id": "", "empty": False},
        {"envelope": seal(FIRST.manifest, COORDINATOR_OWNER)},
    )
    for at, each in enumerate(asked):
        yield "coordinator_body", bytes((at,)) + as_json(each)
    yield "waiting_body", as_json({"envelope": seal(FIRST.manifest, COORDINATOR_OWNER)})
    yield "binding", _binding()


def _binding() -> bytes:
    return encode(partners.applicant().binding("api-0", boot=make_boot(), issued_at=int(NOW)))


def _consul() -> Iterator[tuple[str, bytes]]:
    one = peer("api-0", "100.96.0.10")
    holder = Holder(
        peer_id="api-0", group="api", instance_id="ab" * 20, boot_key=KEY, leaf_key="", compose_hash="ef" * 32,
        renewed_at=NOW,
    )  # fmt: skip
    yield "consul_sidecar", as_json([health("api-0", tags=("master",)) | kv_peers(one)[0]])
    yield "consul_sidecar", as_json(kv_peers(one, peer("api-1", "100.96.0.11")))
    yield "consul_sidecar", as_json(kv({"mesh/manifest": seal(NEXT, OWNER)}))
    yield "consul_sidecar", as_json([kv({"service/db/leader": "api-0"})[0] | {"Session": "s", "Flags": 1835365224}])
    yield "consul_sidecar", as_json([])
    records = {
        "coordinator/slots/api-0": as_json(dataclasses.asdict(holder)).decode(),
        f"coordinator/instances/{'ab' * 20}": "api-0",
        "coordinator/began": "100.5",
        f"coordinator/newcomers/{'cd' * 20}": json.dumps({"instance_id": "cd" * 20, "group": "api"}),
        "mesh/peers/api-0": encode_peer(one).decode(),
    }
    nodes = {"CheckID": "serfHealth", "Node": "api-0", "Status": "passing", "Flags": 7}
    both = [entry | nodes for entry in kv(records)]
    yield "consul_coordinator", as_json(both)
    yield "consul_coordinator", b"null"
    asked = {"Stats": {"serf_lan": {"query_time": "7"}}}
    yield "consul_calls", as_json(asked)
    yield "consul_calls", as_json([entry | {"Name": "mesh", "ID": "5"} for entry in both])
    yield "consul_answer", b"\x00" + b"7"
    yield "consul_answer", b"\x01" + b'{"a": 1}'
    yield "rotation", rotation.encode(rotation.settled(3))
    yield "agent_lists", as_json({"a": {"ServiceID": "db-db-0"}})
    yield "agent_lists", as_json([{"ID": "s"}])
    yield "tally", as_json(both)


def _programs() -> Iterator[tuple[str, bytes]]:
    info = {
        "app_id": "ab" * 20, "instance_id": "cd" * 20, "compose_hash": "ef" * 32, "app_name": "api", "device_id": "",
        "os_image_hash": "01" * 32, "key_provider_info": '{"name": "kms", "id": "30aa"}', "vm_config": "{}",
    }  # fmt: skip
    said: tuple[object, ...] = (
        info,
        {"quote": "abcd", "event_log": "[]", "vm_config": "{}", "attestation": ""},
        {"key": "ab" * 32, "signature_chain": []},
        {"key": "-----BEGIN PRIVATE KEY-----", "certificate_chain": ["-----BEGIN CERTIFICATE-----"]},
        {"version": "0.5.7"},
    )
    for at, each in enumerate(said):
        yield "guest", bytes((at,)) + as_json(each)
    service = {
        "ID": "db-db-0", "Name": "db", "Tags": ["master"], "Meta": {"a": "b"},
        "Check": {"CheckID": "c", "TTL": "5s"}, "EnableTagOverride": False,
    }  # fmt: skip
    operation = {"KV": {"Verb": "set", "Key": "service/db/x", "Value": "eA==", "Flags": 1, "Index": 2, "Session": "s"}}
    asked: tuple[object, ...] = (
        [operation],
        service,
        {"ID": "c", "Name": "c", "ServiceID": "db-db-0", "TCP": "127.0.0.1:5432", "Interval": "1s"},
        {"Node": "db-0", "TTL": "30s", "Behavior": "delete", "LockDelay": "0s"},
        "value",
    )
    for at, each in enumerate(asked):
        yield "workload", bytes((at,)) + as_json(each)
    yield "workload", b"/v1/health/service/db\n"
    variables = {
        "MESH_COORDINATORS": '["https://one.test"]', "MESH_CLUSTER": "demo", "MESH_OWNERS": OWNER_KEY,
        "MESH_STATE_DIR": "/run/mesh-private", "MESH_LOG_LEVEL": "info", "MESH_PCCS_URL": "https://pccs.test",
    }  # fmt: skip
    for name, value in variables.items():
        for harness, names in (
            ("environment", partners.SIDECAR_VARIABLES), ("coordinator_environment", partners.COORDINATOR_VARIABLES),
        ):  # fmt: skip
            if name in names:
                yield harness, bytes((names.index(name),)) + value.encode()
    for at, word in enumerate(('["https://one.test"]', "http://a:1/b", "[1]", "eA==", "text")):
        yield "values", bytes((at,)) + word.encode()


def main() -> None:
    """Writes all of them anew."""
    for name in HARNESSES:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob(f"{GOOD}-*"), *folder.glob("refused-*")):
            old.unlink()
    counts = dict.fromkeys(HARNESSES, 0)
    for source in (_owners, _proofs, _network, _coordinators, _consul, _programs):
        for name, data in source():
            counts[name] += 1
            taken = HARNESSES[name](data)
            (CORPUS / name / f"{GOOD if taken else 'refused'}-{counts[name]:02}").write_bytes(data)
            if not taken:
                print(f"{name} {counts[name]}: refused")


if __name__ == "__main__":
    main()
