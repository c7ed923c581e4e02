"""Boundaries to programs: coordinators and who asks them, Consul, the guest agent, applications, the environment."""

from __future__ import annotations

import functools
import json
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from admission import broker as answers
from admission.client import CoordinatorError, RefusedError, decode_answer
from admission.offers import successors
from admission.protocol import ESTATE, Binding, Code, ManifestHead
from coordinator import config as coordinator_config
from coordinator import governance, policy, proposal, rotation
from coordinator.broker import _strict
from coordinator.documents import Documents
from coordinator.forming import Standing
from coordinator.ledger import Ledger
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.server import application, waiting_application
from coordinator.waiting import REASON
from runtime import consul, guest, values
from runtime.consul import ConsulClient, ConsulError
from runtime.env import ConfigError
from runtime.guest import GuestError
from sidecar import config, listed, registration, sources, workload_amounts, workload_rights
from sidecar.catalog import CatalogError
from sidecar.desired import World
from sidecar.workload_amounts import TooMuchError
from tests.coordinator.alone import FIRST, Tee
from tests.coordinator.test_server import Api
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNERS, Applicant, cvm
from tests.fuzz.harness import Harness, driven, part, text
from tests.fuzz.network import loop
from tests.fuzz.owners import HEAD
from tests.sidecar.world import environment
from topology.trees import ManifestError

NOW = 1_800_000_000.0
LEADER_KEY = "service/db/leader"
FAILED = b"the coordinator failed"
"""What an answer says that nobody foresaw (`coordinator.server`)."""


def tree_of(data: bytes) -> Any:
    """An answer of Consul's, as its client reads it."""
    return consul._parse(consul._text(data))


# Coordinators, as CVMs and other coordinators hear them.


def _coordinator_answer(data: bytes) -> None:
    which, rest = part(data, ("challenge", "admission", "renewal", "standing", "head", "history", "refusal"))
    tree = decode_answer("url", 400 if which == "refusal" else 200, rest)
    if which == "challenge":
        answers.decode_challenge(tree)
    elif which == "admission":
        answers.decode_admission(tree, "url")
    elif which == "renewal":
        answers.decode_renewal(tree)
    elif which in ("standing", "head"):
        answers.decode(Standing if which == "standing" else ManifestHead, tree)
    else:
        loop().run_until_complete(_history(tree))


async def _history(tree: Any) -> None:
    pages = 0

    async def ask(_path: str) -> Any:
        nonlocal pages
        pages += 1
        # The last page of many: a coordinator may say for ever that there are more, each of which has to follow.
        return tree if pages < 4 else {"manifests": [], "more": False}

    async for found in successors(ask, HEAD, None):
        assert found.manifest.epoch > HEAD.manifest.epoch


# Who asks a coordinator.


def _request(path: str, body: bytes) -> web.Request:
    payload = StreamReader(BaseProtocol(loop()), 1 << 21, loop=loop())
    payload.feed_data(body)
    payload.feed_eof()
    return make_mocked_request("POST", path, payload=payload, client_max_size=1 << 20)


@functools.cache
def _api() -> tuple[Api, web.Application]:
    async def made() -> tuple[Api, web.Application]:
        api = Api()
        app = application(api.broker, api.feed, lambda: None, api.standing, api, api.asked, estate=api.estate)
        app.freeze()
        return api, app

    return loop().run_until_complete(made())


PATHS = (
    "/v1/admission/challenge",
    "/v1/admission/attest",
    "/v1/admission/renew",
    "/v1/admission/release",
    "/v1/coordinators/standing",
    "/v1/manifest",
    ESTATE,
)


def _coordinator_body(data: bytes) -> None:
    """Every body is answered, and none with an error that nobody foresaw."""
    path, rest = part(data, PATHS)
    _, app = _api()
    response: Any = loop().run_until_complete(app._handle(_request(path, rest)))
    if FAILED in response.body:
        raise AssertionError(f"{path} was answered with {response.body[:200]!r}")
    if response.status >= 400:
        raise RefusalError(answers_code(response.body), json.loads(response.body)["reason"])


def answers_code(body: bytes) -> Any:
    """The code in a refusal."""
    return Code[json.loads(body)["code"]]


def _waiting_body(data: bytes) -> None:
    """A coordinator without a manifest takes the owners' first one, from anybody."""
    who = cvm(COORDINATOR_COMPOSE, "coordinator-0")
    info = guest.GuestInfo(app_id=who.app_id, instance_id=who.instance_id, compose_hash=who.compose_hash)

    def take(envelope: str, handovers: tuple[str, ...]) -> ManifestHead:
        return proposal.shown(proposal.first(envelope, "tests", OWNERS, info, handovers))

    app = waiting_application(REASON, take)
    app.freeze()
    response: Any = loop().run_until_complete(app._handle(_request("/v1/manifest", data)))
    if FAILED in response.body:
        raise AssertionError(f"a manifest was answered with {response.body[:200]!r}")
    if response.status >= 400:
        raise RefusalError(answers_code(response.body), json.loads(response.body)["reason"])


@functools.cache
def applicant() -> Applicant:
    """A CVM whose quote holds."""
    return Applicant(url="", manifest=FIRST.manifest)


def _binding(data: bytes) -> None:
    """What a genuine CVM says of itself."""
    binding: Binding = _strict(Binding, data, "binding")
    policy.check_boot_keys(binding.boot)
    evidence = driven(Tee(applicant()).verify())
    policy.judged(FIRST.manifest, binding, evidence, NOW)


# Consul.


def world() -> World:
    """What a sidecar knows at first; with a leader key to watch."""
    own = HEAD.manifest.groups["api"]
    return World(signed=HEAD, own=own, group="api")


def _consul_sidecar(data: bytes) -> None:
    """Each watch of a sidecar, once with nothing known and once with what it was told."""
    tree = tree_of(data)
    known = world()
    changes = [*sources.queries(known, check_signatures=True).values(), sources._leader(LEADER_KEY)]
    refused: list[CatalogError] = []
    for change in changes:
        for held in (known, sources.hold(known)):
            try:
                known = change(held, tree, 7)
            except CatalogError as error:
                refused.append(error)
    listed.lists(tree, "100.96.0.10")
    registration.is_ours_to_replace(tree)
    if len(refused) == 2 * len(changes):
        raise refused[0]


def _consul_coordinator(data: bytes) -> None:
    tree = tree_of(data)
    peers: Registry = Registry(lambda: None)
    ledger = Ledger(ConsulClient(), peers, lambda: 100.0, lambda: 100.0)
    refused: ConsulError | None = None
    for take in (ledger.take_records, ledger.take_peers, ledger.take_nodes, Documents(ConsulClient()).take):
        try:
            with consul.reading("the records"):
                take(7, tree)
        except ConsulError as error:
            refused = error
    with consul.reading("the manifest"):
        governance.held(tree)
    if refused is not None:
        raise refused


class _Answering(ConsulClient):
    """A Consul that answers everything with one thing."""

    def __init__(self, tree: Any) -> None:
        super().__init__()
        self._tree = tree

    async def get(self, *_: Any, **__: Any) -> tuple[int, Any]:
        """It."""
        return 7, self._tree

    async def put(self, *_: Any, **__: Any) -> Any:
        """It."""
        return self._tree


def _consul_calls(data: bytes) -> None:
    """What is asked once, and not watched."""
    client = _Answering(tree_of(data))
    ledger = Ledger(client, Registry(lambda: None), lambda: 100.0, lambda: 100.0)
    calls = (
        lambda: consul.query_clock(client),
        lambda: governance.establish(client, FIRST.manifest),
        lambda: governance.stored_manifest(client),
        ledger.refresh,
    )
    refused: list[ConsulError] = []
    for work in calls:
        try:
            driven(work())
        except ConsulError as error:
            refused.append(error)
    if len(refused) == len(calls):
        raise refused[0]


def _consul_answer(data: bytes) -> None:
    """Status, header and body: whatever is wrong with them, Consul has failed."""
    which, rest = part(data, ("index", "body"))
    headers = {"X-Consul-Index": text(rest)} if which == "index" else {}
    consul._index(headers)
    consul._parse(consul._text(rest))


def _rotation(data: bytes) -> None:
    rotation.decode(data)


# The guest agent, applications, the environment.


def _guest(data: bytes) -> None:
    which, rest = part(data, ("Info", "GetQuote", "GetKey", "GetTlsKey", "Version"))
    answer = guest._object(which, 200, rest)
    if which == "Info":
        guest.decode_info(answer)
    elif which == "GetQuote":
        guest.decode_quote(answer)
    elif which == "GetKey":
        guest.decode_key(answer)
    elif which == "GetTlsKey":
        guest.decode_tls_key(answer)
    else:
        guest._text(answer, which, "version")


CALLS = (
    ("PUT", "/v1/txn"),
    ("PUT", "/v1/agent/service/register"),
    ("PUT", "/v1/agent/check/register"),
    ("PUT", "/v1/session/create"),
    ("PUT", "/v1/kv/service/db/x"),
)


@functools.cache
def _rights() -> workload_rights.Rights:
    return workload_rights.Rights(
        peer_id="db-0", services={"db-db-0": "db"}, ports=frozenset({5432}), prefixes=("service/db",), sessions=True
    )


def _workload(data: bytes) -> None:
    """A call of an application: its body, or its path."""
    if data[:1] == b"/":
        path, _, body = data.partition(b"\n")
        call = workload_rights.judge(_rights(), "GET", text(path), {}, body)
    else:
        method, path_of = CALLS[data[0] % len(CALLS) if data else 0]
        call = workload_rights.judge(_rights(), method, path_of, {}, data[1:])
    workload_amounts.kind(call)
    workload_amounts.growth(call)
    brought = workload_amounts.checks_of(call)
    if brought is not None:
        workload_amounts.judge_checks(brought, None, _rights().services)


def _tally(data: bytes) -> None:
    """Keys in an answer, counted while it comes: in two parts as in one."""
    whole, halves = workload_amounts.Tally(), workload_amounts.Tally()
    whole.feed(data)
    halves.feed(data[: len(data) // 2])
    halves.feed(data[len(data) // 2 :])
    assert whole.amount == halves.amount


def _agent_lists(data: bytes) -> None:
    """What the agent lists for the limits of a workload."""
    tree = tree_of(data)
    workload_amounts.judge_checks(frozenset(), tree, _rights().services)
    workload_amounts.judge_sessions(tree)


SIDECAR_VARIABLES = tuple(sorted(each.name for each in config.VARIABLES))


def _environment(data: bytes) -> None:
    """One variable of a sidecar, which the host sets."""
    name, rest = part(data, SIDECAR_VARIABLES)
    config.parse({**environment(), name: text(rest)})


COORDINATOR_VARIABLES = ("MESH_CLUSTER", "MESH_OWNERS", "MESH_PEER_ID", "MESH_LISTEN", "MESH_PCCS_URL", "MESH_DATA_DIR")


def _coordinator_environment(data: bytes) -> None:
    name, rest = part(data, COORDINATOR_VARIABLES)
    coordinator_config.parse({"MESH_CLUSTER": "demo", "MESH_OWNERS": environment()["MESH_OWNERS"], name: text(rest)})


def _values(data: bytes) -> None:
    which, rest = part(data, ("urls", "url", "list", "base64", "text"))
    word = text(rest)
    if which == "urls":
        for url in values.https_urls(word):
            values.http_url(url)
    elif which == "url":
        values.http_url(word)
    elif which == "list":
        values.json_list(word, "things")
    elif which == "base64":
        values.base64_bytes(word)
    else:
        values.text(word)


HARNESSES: dict[str, Harness] = {
    "coordinator_answer": Harness(
        read=_coordinator_answer, foreseen=(CoordinatorError, RefusedError, ManifestError), most=16384
    ),
    "coordinator_body": Harness(read=_coordinator_body, foreseen=(RefusalError,), most=8192),
    "waiting_body": Harness(read=_waiting_body, foreseen=(RefusalError,), most=8192, slow=True),
    "binding": Harness(read=_binding, foreseen=(RefusalError,), most=2048),
    "consul_sidecar": Harness(read=_consul_sidecar, foreseen=(CatalogError, ConsulError), most=4096),
    "consul_coordinator": Harness(read=_consul_coordinator, foreseen=(ConsulError,), most=4096),
    "consul_calls": Harness(read=_consul_calls, foreseen=(ConsulError,), most=4096),
    "consul_answer": Harness(read=_consul_answer, foreseen=(ConsulError,), most=1024),
    "rotation": Harness(read=_rotation, foreseen=(ValueError,), most=512),
    "guest": Harness(read=_guest, foreseen=(GuestError,), most=8192),
    "workload": Harness(read=_workload, foreseen=(workload_rights.RefusedError, TooMuchError), most=2048),
    "tally": Harness(read=_tally, most=2048),
    "agent_lists": Harness(read=_agent_lists, foreseen=(ConsulError, TooMuchError), most=2048),
    "environment": Harness(read=_environment, foreseen=(ConfigError,), most=1024),
    "coordinator_environment": Harness(read=_coordinator_environment, foreseen=(ConfigError,), most=1024),
    "values": Harness(read=_values, foreseen=(ValueError,), most=512),
}
