"""What a workload may ask of Consul: its own, and nothing beside it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from sidecar.workload_rights import MAX_OPERATIONS, Call, RefusedError, Rights, judge, rights
from tests.coordinator.world import make_database_manifest

OWN = rights("db-0", make_database_manifest().groups["db"])
LEADER = "service/db/leader"


def ask(method: str, path: str, body: Any = b"", own: Rights = OWN, **query: str) -> Call:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return judge(own, method, path, query, data)


def test_rights_are_those_of_the_workloads_own_backends() -> None:
    """IDs as the sidecar registers them; no reserved key, whatever a manifest says; nothing of the platform's."""
    assert Rights(
        peer_id="db-0", services={"db-db-0": "db"}, ports=frozenset({5432}), prefixes=("service/db",), sessions=True
    ) == OWN  # fmt: skip
    manifest = make_database_manifest()
    backend = manifest.groups["db"].backends["db"]
    bold = dataclasses.replace(backend.permissions, key_prefixes=("coordinator/", "service/db"))
    entry = dataclasses.replace(manifest.groups["db"], backends={"db": dataclasses.replace(backend, permissions=bold)})
    assert rights("db-0", entry).prefixes == ("service/db",)
    assert rights("api-0", manifest.groups["api"]).services == {}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/v1/kv/{LEADER}", b""),
        ("GET", "/v1/kv/service/db/", b""),
        ("PUT", f"/v1/kv/{LEADER}", b"db-0"),
        ("DELETE", f"/v1/kv/{LEADER}", b""),
        ("GET", "/v1/health/service/db", b""),
        ("GET", "/v1/health/node/db-1", b""),
        ("GET", "/v1/catalog/services", b""),
        ("GET", "/v1/agent/services", b""),
        ("GET", "/v1/agent/service/db-db-0", b""),
        ("PUT", "/v1/agent/service/deregister/db-db-0", b""),
        ("PUT", "/v1/agent/check/update/db-db-0:member", b'{"Status": "passing"}'),
        ("PUT", "/v1/session/renew/7f3c", b""),
        ("GET", "/v1/session/node/db-0", b""),
    ],
)
def test_what_the_template_promises_goes_on_as_it_is(method: str, path: str, body: bytes) -> None:
    """Keys, sessions, checks, the health of services."""
    assert ask(method, path, body) == Call(method=method, path=path, body=body)


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("PUT", "/v1/agent/leave", "not what a workload may ask"),
        ("PUT", "/v1/agent/token/agent", "not what a workload may ask"),
        ("PUT", "/v1/agent/reload", "not what a workload may ask"),
        ("GET", "/v1/agent/self", "not what a workload may ask"),
        ("GET", "/v1/agent/metrics", "not what a workload may ask"),
        ("GET", "/v1/acl/tokens", "not what a workload may ask"),
        ("PUT", "/v1/catalog/register", "not what a workload may ask"),
        ("PUT", "/v1/event/fire/x", "not what a workload may ask"),
        ("POST", f"/v1/kv/{LEADER}", "not what a workload may ask"),
        ("GET", "/", "not what a workload may ask"),
        ("GET", "/v1/catalog/services/x", "not what a workload may ask"),
        ("GET", "/v1/kv/", "the key '' is not the workload's"),
        ("GET", "/v1/kv/mesh/manifest", "'service/db'"),
        ("PUT", "/v1/kv/service/other/leader", "'service/db'"),
        ("GET", "/v1/kv/service/db/../../mesh/manifest", "'..'"),
        ("GET", "/v1/kv/service/db/%2e%2e/%2E%2E/mesh/manifest", "'..'"),
        ("GET", "/v1//kv/service/db", "'//'"),
        ("GET", "/v1/kv/service/db%ff", "UTF-8"),
        ("GET", "/v1/health/node/", "one name"),
        ("GET", "/v1/health/node/a/b", "one name"),
        ("PUT", "/v1/agent/service/deregister/api-api-0", "'db-db-0' with Name 'db'"),
        ("GET", "/v1/session/node/db-1", "expected 'db-0'"),
    ],
)
def test_everything_else_is_refused_with_the_reason(method: str, path: str, reason: str) -> None:
    """The agent's own affairs, other tokens, the catalog's writes, the keys of others, and paths with a way around."""
    with pytest.raises(RefusedError) as refused:
        ask(method, path)
    assert reason in str(refused.value)


def test_an_encoded_key_is_judged_as_consul_reads_it() -> None:
    """What goes on is the decoded path that was judged."""
    assert ask("GET", "/v1/kv/service%2Fdb/a%20b").path == "/v1/kv/service/db/a b"


@pytest.mark.parametrize("name", ["token", "dc", "ns", "peer"])
def test_a_query_carries_nothing_that_was_not_thought_of(name: str) -> None:
    """A token in a URL ends up in logs; other datacenters, namespaces and peers are nobody's business."""
    with pytest.raises(RefusedError, match=f"'{name}'"):
        ask("GET", f"/v1/kv/{LEADER}", **{name: "x"})
    assert ask("GET", f"/v1/kv/{LEADER}", index="5", wait="10s", consistent="")


SERVICE = {"ID": "db-db-0", "Name": "db", "Port": 25432, "Tags": ["master"], "Checks": [{"TTL": "30s"}]}


def test_a_registration_is_of_the_own_service() -> None:
    """By ID and name together, in whatever case its author writes the fields; what goes on was judged."""
    for body in (SERVICE, {name.lower(): value for name, value in SERVICE.items()}):
        sent = json.loads(ask("PUT", "/v1/agent/service/register", body).body)
        assert (sent["id"], sent["name"], sent["tags"]) == ("db-db-0", "db", ["master"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SERVICE | {"ID": "api-api-0"}, "not the workload's service"),
        (SERVICE | {"Name": "api"}, "not the workload's service"),
        ({"Name": "db"}, "not the workload's service"),
        (SERVICE | {"Connect": {"SidecarService": {}}}, "'connect'"),
        (SERVICE | {"Kind": "mesh-gateway"}, "'kind'"),
        (SERVICE | {"name": "api"}, "twice"),
        (SERVICE | {"ID": ["db-db-0"]}, "not the workload's service"),
        ([], "an object"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_registration_of_anything_else_is_refused(body: Any, reason: str) -> None:
    """Another service, a gateway, a field that Consul would read otherwise, nonsense of any depth."""
    with pytest.raises(RefusedError, match=reason):
        ask("PUT", "/v1/agent/service/register", body)


def test_a_check_belongs_to_the_own_service() -> None:
    """A check of the node would decide over everybody's."""
    sent = json.loads(ask("PUT", "/v1/agent/check/register", {"Name": "x", "service_id": "db-db-0", "TTL": "9s"}).body)
    assert sent["serviceid"] == "db-db-0"
    for body in ({"Name": "x"}, {"Name": "x", "ServiceID": "api-api-0"}, {"Name": "x", "ServiceID": {}}):
        with pytest.raises(RefusedError, match="ServiceID"):
            ask("PUT", "/v1/agent/check/register", body)


@pytest.mark.parametrize(
    "check",
    [
        {"CheckID": "db-db-0:member", "Name": "x", "Notes": "y", "TTL": "30s", "Status": "passing"},
        {"TCP": "127.0.0.1:5432", "Interval": "1s", "Timeout": "1s"},
        {"HTTP": "http://127.0.0.1:5432", "Interval": "10s"},
        {"http": "https://127.0.0.1:5432/health?x=@y", "deregister_critical_service_after": "1h"},
    ],
)
def test_a_check_is_reported_or_dials_the_workloads_own_port(check: dict[str, str]) -> None:
    """With the service, beside it, or later; no answer to an HTTP check leads the agent anywhere else."""
    wanted = {name.replace("_", "").lower(): value for name, value in check.items()}
    wanted |= {"disableredirects": True} if "http" in wanted else {}  # type: ignore[dict-item]
    for body in (SERVICE | {"Checks": [check]}, SERVICE | {"Checks": None, "Check": check}):
        sent = json.loads(ask("PUT", "/v1/agent/service/register", body).body)
        assert wanted in [*(sent["checks"] or ()), sent.get("check")]
    later = json.loads(ask("PUT", "/v1/agent/check/register", check | {"ServiceID": "db-db-0"}).body)
    assert later == wanted | {"serviceid": "db-db-0"}


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"Args": ["sh", "-c", "id"]}, "'args'"),
        ({"Script": "id"}, "'script'"),
        ({"DockerContainerID": "x", "Shell": "sh"}, "'dockercontainerid'"),
        ({"GRPC": "127.0.0.1:5432"}, "'grpc'"),
        ({"UDP": "127.0.0.1:5432"}, "'udp'"),
        ({"H2PING": "127.0.0.1:5432"}, "'h2ping'"),
        ({"OSService": "x"}, "'osservice'"),
        ({"AliasService": "api-api-0"}, "'aliasservice'"),
        ({"AliasNode": "api-0"}, "'aliasnode'"),
        ({"TTL": "9s", "Header": {"X": ["y"]}}, "'header'"),
        ({"HTTP": "http://127.0.0.1:5432", "DisableRedirects": False}, "'disableredirects'"),
        ({"TCP": "100.96.0.2:8301"}, "TCP at 127.0.0.1"),
        ({"TCP": "127.0.0.1:8500"}, r"out of \[5432\]"),
        ({"TCP": "localhost:5432"}, "TCP at 127.0.0.1"),
        ({"TCP": ["127.0.0.1:5432"]}, "TCP at 127.0.0.1"),
        ({"HTTP": "http://169.254.169.254/latest"}, "HTTP at 127.0.0.1"),
        ({"HTTP": "http://127.0.0.1:5432@elsewhere.example/"}, "HTTP at 127.0.0.1"),
        ({"HTTP": "http://127.0.0.1:54321/"}, "HTTP at 127.0.0.1"),
        ({"HTTP": ["http://127.0.0.1:5432/"]}, "HTTP at 127.0.0.1"),
        ({"t_c_p": "127.0.0.1:8301", "TTL": "9s"}, "TCP at 127.0.0.1"),
        ("x", "an object"),
    ],
)
def test_a_check_leads_the_agent_nowhere_else(check: Any, reason: str) -> None:
    """No program, no other's status, no other port or machine, wherever the definition stands."""
    with pytest.raises(RefusedError, match=reason):
        ask("PUT", "/v1/agent/service/register", SERVICE | {"Checks": [{"TTL": "9s"}, check]})
    with pytest.raises(RefusedError, match=reason):
        ask("PUT", "/v1/agent/service/register", SERVICE | {"Check": check})
    if isinstance(check, dict):
        with pytest.raises(RefusedError, match=reason):
            ask("PUT", "/v1/agent/check/register", check | {"ServiceID": "db-db-0"})
    with pytest.raises(RefusedError, match="no list"):
        ask("PUT", "/v1/agent/service/register", SERVICE | {"Checks": {"a": check}})


def test_sessions_are_of_the_own_node_and_need_the_right() -> None:
    """`session_write` of the backend; a session elsewhere could end another CVM's locks."""
    assert ask("PUT", "/v1/session/create").body == b""
    assert json.loads(ask("PUT", "/v1/session/create", {"Node": "db-0", "LockDelay": "1ms"}).body)["node"] == "db-0"
    with pytest.raises(RefusedError, match="'db-1'"):
        ask("PUT", "/v1/session/create", {"Node": "db-1"})
    none = dataclasses.replace(OWN, sessions=False)
    for path in ("/v1/session/create", "/v1/session/renew/x", "/v1/session/destroy/x"):
        with pytest.raises(RefusedError, match="session_write"):
            ask("PUT", path, own=none)


def test_a_transaction_touches_own_keys_only() -> None:
    """Each operation is judged; services, nodes and checks of a transaction are no keys."""
    lock = {"Verb": "lock", "Key": LEADER, "Value": "eA==", "Session": "s"}
    sent = json.loads(ask("PUT", "/v1/txn", [{"KV": lock}]).body)
    assert sent == [{"KV": {name.lower(): value for name, value in lock.items()}}]
    for body, reason in (
        ([{"KV": lock | {"Key": "mesh/manifest"}}], "not the workload's"),
        ([{"KV": lock | {"Key": 5}}], "not the workload's"),
        ([{"KV": lock}, {"Service": {}}], "'service'"),
        ([{"KV": None}], "an object"),
        ({"KV": lock}, "a list"),
        ([{"KV": lock}] * (MAX_OPERATIONS + 1), str(MAX_OPERATIONS)),
    ):
        with pytest.raises(RefusedError, match=reason):
            ask("PUT", "/v1/txn", body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("Value", value) for value in ([0] * 9, [], 5, {}, True, "\ud800")),
        *(("Key", value) for value in (None, [LEADER], 5, LEADER + "\udfff")),
        *(("Verb", value) for value in (["get"], 5)),
        *(("Flags", value) for value in ("5", [5], 1.5, True)),
        ("Index", "5"),
        ("Session", ["s"]),
    ],
    ids=repr,
)
def test_what_a_transaction_carries_has_one_meaning(name: str, value: object) -> None:
    """Go takes a list of numbers for a value: what was weighed would be another thing than what Consul stores."""
    lock = {"Verb": "lock", "Key": LEADER, "Value": "eA==", "Session": "s", "Flags": 0, "Index": 5}
    ask("PUT", "/v1/txn", [{"KV": lock}])
    ask("PUT", "/v1/txn", [{"KV": lock | {"Value": None, "Session": None}}])
    with pytest.raises(RefusedError, match=f"{name.lower()} is|not the workload's"):
        ask("PUT", "/v1/txn", [{"KV": lock | {name: value}}])


@pytest.mark.parametrize("name", [rb"K\u0065y", b"kEY", b"K_ey", rb"\u212aey"])
def test_a_name_is_judged_as_go_reads_it(name: bytes) -> None:
    """Escapes and cases make no further field, and what goes on has one spelling."""
    body = b'[{"KV": {"Verb": "set", "%s": "service/db/x", "Value": "eA=="}}]' % name
    assert json.loads(ask("PUT", "/v1/txn", body).body)[0]["KV"]["key"] == "service/db/x"
    twice = body.replace(b'"Value"', b'"Key": "mesh/manifest", "Value"')
    with pytest.raises(RefusedError, match=r"twice|not the workload's"):
        ask("PUT", "/v1/txn", twice)


def test_of_two_equal_names_the_one_that_was_judged_goes_on() -> None:
    """Readers of JSON differ in which one wins."""
    body = b'[{"KV": {"Verb": "set", "Key": "mesh/manifest", "Key": "service/db/x", "Value": [1], "Value": "eA=="}}]'
    kept = {"verb": "set", "key": "service/db/x", "value": "eA=="}
    assert json.loads(ask("PUT", "/v1/txn", body).body) == [{"KV": kept}]
