"""The twenty rules of a correct xDS server, one test or more each, against the pure machine (rule 20 is in
test_transport). Long because the rules are twenty; they share the small world below."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET, TYPES, Resource, Snapshot
from xds.stream import History, Request, Response, Stream


def world(version: str = "1", **routes: str) -> Snapshot:
    """A snapshot with a cluster, endpoints and a listener for each route; a value is `cluster-endpoints-listener`
    versions."""
    found: dict[str, dict[str, Resource]] = {type_url: {} for type_url in TYPES}
    for name, versions in routes.items():
        for type_url, part in zip((CLUSTER, ENDPOINT, LISTENER), versions.split("-"), strict=True):
            found[type_url][name] = Resource(name=name, version=part, body=f"{type_url}{name}{part}".encode())
    return Snapshot(version=version, resources=found, entries={})


def with_secret(snapshot: Snapshot, name: str, version: str) -> Snapshot:
    """`snapshot` and a secret."""
    secret = Resource(name=name, version=version, body=version.encode())
    found = {**snapshot.resources, SECRET: {name: secret}}
    return Snapshot(version=snapshot.version + "s", resources=found, entries={})


class Client:
    """What Envoy does on a delta stream: subscribes to everything, to the endpoints of its clusters, and
    acknowledges."""

    def __init__(self, histories: dict[str, History] | None = None, *, node: str = "n", auto: bool = True) -> None:
        self.stream = Stream({} if histories is None else histories)
        self.node, self.auto = node, auto
        self.log: list[Response] = []
        self.held: dict[str, dict[str, str]] = {type_url: {} for type_url in TYPES}
        self.reject: set[str] = set()

    def connect(self, *types: str) -> Client:
        """First requests, restating what is held."""
        for index, type_url in enumerate(types or (CLUSTER, LISTENER)):
            node = self.node if index == 0 else ""
            self.send(type_url, node_id=node, initial_versions=dict(self.held[type_url]))
        if not types and self.held[CLUSTER]:
            names = tuple(self.held[CLUSTER])
            self.send(ENDPOINT, subscribe=names, initial_versions=dict(self.held[ENDPOINT]))
        return self

    def send(self, type_url: str, **values: object) -> None:
        self.stream.handle(Request(type_url=type_url, **values))  # type: ignore[arg-type]

    def take(self) -> Response | None:
        """The next response, applied but not answered."""
        response = self.stream.poll()
        if response is None:
            return None
        self.log.append(response)
        held = self.held[response.type_url]
        fresh = [r.name for r in response.resources if r.name not in held]
        held.update((r.name, r.version) for r in response.resources if r.name not in self.reject)
        for name in response.removed:
            held.pop(name, None)
        if response.type_url == CLUSTER:
            if fresh:
                self.send(ENDPOINT, subscribe=tuple(fresh))
            if response.removed:
                self.send(ENDPOINT, unsubscribe=response.removed)
        return response

    def answer(self, response: Response) -> None:
        """ACK, or NACK if it holds something that this client rejects."""
        bad = [r.name for r in response.resources if r.name in self.reject]
        self.send(response.type_url, nonce=response.nonce, error=f"bad {bad}" if bad else None)

    def run(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Until nothing comes: (type, sent, removed) of every response since the last run."""
        start = len(self.log)
        while (response := self.take()) is not None:
            self.answer(response)
        return [(r.type_url, tuple(x.name for x in r.resources), r.removed) for r in self.log[start:]]


def ready(snapshot: Snapshot, histories: dict[str, History] | None = None) -> Client:
    """A client that holds all of `snapshot`."""
    client = Client(histories)
    client.stream.publish(snapshot)
    client.connect().run()
    assert client.stream.acknowledged() == snapshot.version
    return client


def test_rule_01_additions_go_out_clusters_endpoints_listeners() -> None:
    """A new route arrives as cluster, endpoints, listener, each after the one before was acknowledged where it
    matters."""
    client = ready(world())
    client.stream.publish(world("2", a="1-1-1"))
    assert [kind for kind, _, _ in client.run()] == [CLUSTER, ENDPOINT, LISTENER]


def test_rule_01_a_moved_route_is_one_burst() -> None:
    """Endpoints of a warm cluster and its listener follow one another at once: nobody waits to be cut."""
    client = ready(world(a="1-1-1", b="1-1-1"))
    client.stream.publish(world("2", a="1-2-2", b="1-1-1"))
    taken = [client.take(), client.take(), client.take()]
    assert [response and response.type_url for response in taken] == [ENDPOINT, LISTENER, None]


def test_rule_01_listeners_wait_for_the_acks_of_clusters() -> None:
    """No listener is sent while a cluster response is unanswered, whatever became of the endpoints."""
    client = ready(world(a="1-1-1"))
    client.stream.publish(world("2", a="2-1-2"))
    cluster, endpoints = client.take(), client.take()
    assert cluster is not None
    assert cluster.type_url == CLUSTER
    assert endpoints is not None
    assert endpoints.type_url == ENDPOINT
    assert client.take() is None
    client.answer(endpoints)
    assert client.take() is None
    client.answer(cluster)
    listener = client.take()
    assert listener is not None
    assert listener.type_url == LISTENER


def test_rule_01_endpoints_do_not_wait_for_a_withheld_cluster_ack() -> None:
    """Envoy acknowledges a cluster only when it has warmed, which takes its endpoints."""
    client = ready(world(a="1-1-1", b="1-1-1"))
    client.stream.publish(world("2", a="2-1-1", b="1-1-1"))
    assert client.take() is not None
    assert client.take() is not None
    client.stream.publish(world("3", a="2-1-1", b="1-2-1"))
    response = client.take()
    assert response is not None
    assert [r.name for r in response.resources] == ["b"]


def test_rule_01_clusters_are_removed_after_the_listener_is_acknowledged() -> None:
    """Removal comes last: listener first, and its ACK before the cluster goes."""
    client = ready(world(a="1-1-1"))
    client.stream.publish(world("2"))
    listener = client.take()
    assert listener is not None
    assert (listener.type_url, listener.removed) == (LISTENER, ("a",))
    assert client.take() is None
    client.answer(listener)
    assert client.run()[0] == (CLUSTER, (), ("a",))
    assert client.stream.acknowledged() == "2"


def test_rule_01_a_rejected_listener_keeps_the_clusters_that_the_old_one_needs() -> None:
    """Nothing is removed while a listener's change is rejected, because its last good form runs on."""
    client = ready(world(a="1-1-1", b="1-1-1"))
    client.reject = {"b"}
    client.stream.publish(world("2", b="1-1-2"))
    assert [kind for kind, _, _ in client.run()] == [LISTENER]
    assert "a" in client.held[CLUSTER]


def test_rule_02_a_stale_nonce_acknowledges_nothing_but_its_subscriptions_count() -> None:
    """A delta request is never repeated, so what it subscribes counts whatever response it answers."""
    client = Client()
    client.stream.publish(world(a="1-1-1"))
    client.connect(CLUSTER)
    response = client.stream.poll()
    assert response is not None
    client.send(ENDPOINT, nonce="999", subscribe=("a",), error="of another stream")
    assert client.stream.nacks() == ()
    endpoints = client.stream.poll()
    assert endpoints is not None
    assert endpoints.nonce != response.nonce
    assert [r.name for r in endpoints.resources] == ["a"]


def test_rule_03_a_nack_is_shown_and_the_same_content_is_not_sent_again() -> None:
    """After a NACK only other content is sent, and the rejection is named until then."""
    client = ready(world(a="1-1-1"))
    client.reject = {"a"}
    client.stream.publish(world("2", a="1-1-2"))
    client.run()
    (nack,) = client.stream.nacks()
    assert (nack.type_url, nack.names, nack.version) == (LISTENER, ("a",), "2")
    assert client.stream.acknowledged() is None
    client.stream.publish(world("2b", a="1-1-2"))
    assert client.run() == []
    client.reject = set()
    client.stream.publish(world("3", a="1-1-3"))
    assert client.run() == [(LISTENER, ("a",), ())]
    assert client.stream.nacks() == ()
    assert client.stream.acknowledged() == "3"


def test_rule_03_only_the_resources_that_the_message_names_are_blamed() -> None:
    """Envoy applies the good siblings of a rejected listener and says which one failed."""
    client = ready(world())
    client.reject = {"bad"}
    client.stream.publish(world("2", good="1-1-1", bad="1-1-1"))
    client.auto = False
    client.run()
    assert {nack.names for nack in client.stream.nacks()} == {("bad",)}


def test_rule_03_a_name_within_another_one_is_not_blamed() -> None:
    """`egress/api-2` failed, not `egress/api`, and not `api-2`."""
    names = ("egress/api", "egress/api-2", "api-2", "egress/api-2/x")
    client = ready(world())
    client.stream.publish(world("2", **dict.fromkeys(names, "1-1-1")))
    while (response := client.take()) is not None and response.type_url != LISTENER:
        client.answer(response)
    assert response is not None
    client.send(LISTENER, nonce=response.nonce, error="Error adding/updating listener(s) egress/api-2: cannot bind\n")
    assert [nack.names for nack in client.stream.nacks()] == [("egress/api-2",)]


def test_rule_03_a_rejection_without_a_word_is_one() -> None:
    """All of the response is blamed."""
    client = ready(world())
    client.stream.publish(world("2", a="1-1-1"))
    response = client.take()
    assert response is not None
    client.send(CLUSTER, nonce=response.nonce, error="")
    assert [nack.names for nack in client.stream.nacks()] == [("a",)]
    assert client.stream.acknowledged() is None


def test_rule_03_retry_offers_what_was_rejected_once_more() -> None:
    """An explicit retry (a freed port) sends the rejected content again, once."""
    client = ready(world(a="1-1-1"))
    client.reject = {"a"}
    client.stream.publish(world("2", a="1-1-2"))
    client.run()
    client.stream.retry()
    assert client.run() == [(LISTENER, ("a",), ())]
    client.reject = set()
    client.stream.retry()
    client.run()
    assert client.stream.acknowledged() == "2"


def test_rule_04_only_what_differs_is_sent() -> None:
    """Content that is as before is not sent, whatever the snapshot is called."""
    client = ready(world(a="1-1-1", b="1-1-1"))
    client.stream.publish(world("2", a="1-1-1", b="1-2-1"))
    assert client.run() == [(ENDPOINT, ("b",), ())]
    client.stream.publish(world("3", a="1-1-1", b="1-2-1"))
    assert client.run() == []
    assert client.stream.acknowledged() == "3"


def test_rule_05_an_empty_first_subscription_and_a_star_are_wildcards_until_unsubscribed() -> None:
    """Both forms get everything; after unsubscribing the star only named resources come."""
    for subscribe in ((), ("*",)):
        client = Client()
        client.stream.publish(world(a="1-1-1"))
        client.send(CLUSTER, subscribe=subscribe)
        assert client.run()[0][1] == ("a",)
        client.send(CLUSTER, subscribe=("b",), unsubscribe=("*",))
        client.stream.publish(world("2", a="2-1-1", b="1-1-1", c="1-1-1"))
        assert client.run()[0] == (CLUSTER, ("b",), ())


def test_rule_05_a_first_request_that_only_unsubscribes_is_no_wildcard() -> None:
    """It says what is not wanted; nothing says that all else is."""
    client = Client()
    client.stream.publish(world(a="1-1-1"))
    client.send(CLUSTER, unsubscribe=("b",))
    assert client.run() == []


def test_rule_05_an_empty_first_subscription_to_endpoints_is_no_wildcard() -> None:
    """Only clusters and listeners have the legacy form."""
    client = Client()
    client.stream.publish(world(a="1-1-1"))
    client.send(ENDPOINT)
    assert client.run() == []


def test_rule_06_a_name_that_is_subscribed_again_is_answered_again() -> None:
    """The client may have dropped what it had."""
    client = ready(world(a="1-1-1"))
    client.send(ENDPOINT, subscribe=("a",))
    assert client.run() == [(ENDPOINT, ("a",), ())]


def test_rule_07_a_name_unsubscribed_under_a_wildcard_is_answered() -> None:
    """It still gets everything, so it is told what became of that one; unknown names are harmless."""
    client = Client()
    client.stream.publish(world(a="1-1-1"))
    client.send(CLUSTER, subscribe=("*", "a", "ghost"))
    client.run()
    client.send(CLUSTER, unsubscribe=("a",))
    assert client.run()[0] == (CLUSTER, ("a",), ())
    client.send(CLUSTER, unsubscribe=("ghost",))
    assert client.run() == [(CLUSTER, (), ("ghost",))]
    client.send(CLUSTER, unsubscribe=("never subscribed",))
    assert client.run() == []


def test_rule_08_an_unknown_name_is_reported_removed_and_sent_when_it_appears() -> None:
    """The client need not wait for its fetch timeout to learn that there is nothing."""
    client = ready(world(a="1-1-1"))
    client.send(ENDPOINT, subscribe=("b",))
    assert client.run() == [(ENDPOINT, (), ("b",))]
    client.stream.publish(world("2", a="1-1-1", b="1-1-1"))
    assert (ENDPOINT, ("b",), ()) in client.run()


def test_rule_09_removals_are_the_difference_to_what_is_held() -> None:
    """Every held name that is not wanted is removed, in one response a type."""
    client = ready(world(a="1-1-1", b="1-1-1", c="1-1-1"))
    client.stream.publish(world("2", b="1-1-1"))
    removed = {kind: set(gone) for kind, _, gone in client.run() if gone}
    assert removed[LISTENER] == removed[CLUSTER] == {"a", "c"}
    assert set(client.held[ENDPOINT]) - {"a", "c"} == {"b"}


def test_rule_09_a_client_without_listeners_is_told_of_removals() -> None:
    """When it has answered for clusters: until then it might have been about to ask for listeners, which come first."""
    client = Client()
    client.stream.publish(world(a="1-1-1"))
    client.connect(CLUSTER).run()
    client.stream.publish(world("2", a="2-1-1", b="1-1-1"))
    client.run()
    client.stream.publish(world("3", a="3-1-1"))
    cluster = client.take()
    assert cluster is not None
    assert ([r.name for r in cluster.resources], cluster.removed) == (["a"], ())
    rest = client.take()
    assert rest is not None
    assert (rest.type_url, rest.removed) == (ENDPOINT, ())
    client.answer(rest)
    assert client.take() is None
    client.answer(cluster)
    assert (CLUSTER, (), ("b",)) in client.run()


def test_rule_10_endpoints_follow_an_updated_cluster_though_unchanged() -> None:
    """Without them the cluster would warm for 15 s."""
    client = ready(world(a="1-1-1"))
    client.stream.publish(world("2", a="2-1-1"))
    assert client.run() == [(CLUSTER, ("a",), ()), (ENDPOINT, ("a",), ())]


def test_rule_11_there_is_no_type_that_listeners_would_have_to_wait_for() -> None:
    """A listener names clusters and secrets only, and goes out last; what Envoy asks of other types is not answered."""
    assert TYPES == (CLUSTER, ENDPOINT, SECRET, LISTENER)
    client = ready(world(a="1-1-1"))
    client.send("type.googleapis.com/envoy.config.route.v3.RouteConfiguration", subscribe=("r",))
    assert client.run() == []


def test_rule_12_no_name_is_twice_in_a_response() -> None:
    """Even one that is changed, due and subscribed at once."""
    client = ready(world(a="1-1-1"))
    client.send(ENDPOINT, subscribe=("a", "a"))
    client.stream.publish(world("2", a="2-2-1"))
    for _, sent, removed in client.run():
        assert len({*sent, *removed}) == len(sent) + len(removed)


def test_rule_13_a_reconnected_client_gets_the_difference_and_removals() -> None:
    """What it restates in the wanted version is not sent; what is gone is removed."""
    histories: dict[str, History] = {}
    client = ready(world(a="1-1-1", b="1-1-1"), histories)
    again = Client(histories)
    again.held = client.held
    again.stream.publish(world("2", b="1-2-1"))
    said = again.connect().run()
    assert (ENDPOINT, ("b",), ()) in said
    assert {gone for _, _, gone in said if gone} == {("a",)}
    assert not any(sent for kind, sent, _ in said if kind in (CLUSTER, LISTENER))
    assert again.stream.acknowledged() == "2"


def test_rule_13_what_a_client_holds_but_does_not_restate_is_removed_too() -> None:
    """After a partial rejection Envoy forgets to restate what it applied: the server's own memory removes it."""
    histories: dict[str, History] = {}
    ready(world(zombie="1-1-1"), histories)
    again = Client(histories)
    again.stream.publish(world("2"))
    said = again.connect().run()
    assert (LISTENER, (), ("zombie",)) in said
    third = Client(histories)
    third.stream.publish(world("2"))
    assert not any(gone for _, _, gone in third.connect().run()), "an acknowledged removal is not repeated"


def test_rule_13_histories_of_other_nodes_do_not_mix() -> None:
    """Another node is not asked to remove what it never had."""
    histories: dict[str, History] = {}
    ready(world(a="1-1-1"), histories)
    other = Client(histories, node="other")
    other.stream.publish(world("2"))
    assert not any(gone for _, _, gone in other.connect().run())


def test_rule_14_an_answer_that_was_not_taken_yet_respects_a_later_unsubscribe() -> None:
    """Responses are made when they are taken, so a queued one cannot be outdated."""
    client = ready(world(a="1-1-1", b="1-1-1"))
    client.stream.publish(world("2", a="1-2-1", b="1-2-1"))
    client.send(ENDPOINT, unsubscribe=("a",))
    assert client.run() == [(ENDPOINT, ("b",), ())]


def test_rule_15_the_node_of_the_first_request_stays() -> None:
    """Later requests carry none, and do not change whose stream this is."""
    client = Client(node="first")
    client.connect(CLUSTER)
    client.send(LISTENER, node_id="second")
    assert client.stream.node_id == "first"


def test_rule_16_no_resource_expires() -> None:
    """No TTL is set: a resource stays until it is removed, also when the control plane is away."""
    from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse

    from xds.wire import write_response

    client = Client()
    client.stream.publish(world(a="1-1-1"))
    client.connect(CLUSTER)
    response = client.stream.poll()
    assert response is not None
    assert DeltaDiscoveryResponse.parse(write_response(response)).resources[0].ttl is None


def test_rule_17_a_finished_stream_leaves_nothing_in_the_next_one() -> None:
    """Subscriptions, pending answers and rejections belong to a stream; only the names ever sent outlive it."""
    histories: dict[str, History] = {}
    client = ready(world(a="1-1-1"), histories)
    client.reject = {"a"}
    client.stream.publish(world("2", a="1-1-2"))
    client.run()
    again = Client(histories)
    again.stream.publish(world("2", a="1-1-2"))
    assert again.stream.nacks() == ()
    assert again.stream.poll() is None


def test_rule_18_nothing_is_sent_before_the_first_snapshot() -> None:
    """A client that is early waits; it is not told that there is nothing."""
    client = Client().connect()
    assert client.run() == []
    client.stream.publish(world(a="1-1-1"))
    assert [kind for kind, _, _ in client.run()] == [CLUSTER, ENDPOINT, LISTENER]


def test_rule_19_a_slow_client_gets_the_newest_state_once() -> None:
    """Snapshots that were published while it did not read become one answer."""
    client = ready(world(a="1-1-1"))
    for version in range(2, 50):
        client.stream.publish(world(str(version), a=f"1-{version}-1"))
    assert client.run() == [(ENDPOINT, ("a",), ())]
    assert client.held[ENDPOINT] == {"a": "49"}
    assert client.stream.acknowledged() == "49"


def test_an_empty_snapshot_is_answered_so_that_envoy_starts() -> None:
    """Envoy waits for its first clusters and listeners for ever; none is an answer too."""
    client = ready(world())
    assert [(r.type_url, r.resources) for r in client.log] == [(CLUSTER, ()), (LISTENER, ())]


def test_secrets_go_out_before_listeners_and_count_for_the_acknowledgement() -> None:
    """A snapshot is not acknowledged before every secret in it is held."""
    client = ready(world(a="1-1-1"))
    client.stream.publish(with_secret(world("2", a="1-1-1"), "roots", "1"))
    client.run()
    assert client.stream.acknowledged() is None
    client.send(SECRET, subscribe=("roots",))
    assert client.run() == [(SECRET, ("roots",), ())]
    assert client.stream.acknowledged() == "2s"


_VERSIONS = st.sampled_from(["1-1-1", "2-1-1", "1-2-1", "1-1-2", "2-2-2"])
_WORLDS = st.dictionaries(st.sampled_from(["a", "b", "c"]), _VERSIONS, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_WORLDS, st.integers(0, 6), st.booleans()), max_size=6))
def test_any_sequence_of_snapshots_and_reconnects_converges(steps: list[tuple[dict[str, str], int, bool]]) -> None:
    """However publishing, answering and reconnecting interleave, the client ends up with exactly the last snapshot,
    and never holds a listener without its cluster."""
    histories: dict[str, History] = {}
    client = Client(histories)
    snapshot = world("0")
    client.stream.publish(snapshot)
    client.connect()
    for number, (routes, answers, reconnect) in enumerate(steps, 1):
        snapshot = world(str(number), **routes)
        client.stream.publish(snapshot)
        if reconnect:
            held, client = client.held, Client(histories)
            client.held = held
            client.stream.publish(snapshot)
            client.connect()
        for _ in range(answers):
            response = client.take()
            if response is not None:
                client.answer(response)
            assert set(client.held[LISTENER]) <= set(client.held[CLUSTER])
    for response in client.log:
        client.answer(response)
    client.run()
    for type_url in (CLUSTER, LISTENER):
        assert client.held[type_url] == {n: r.version for n, r in snapshot.resources[type_url].items()}
    assert client.stream.acknowledged() == snapshot.version
