"""What changes between two clusters, and what each change does to CVMs on Phala Cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshctl import plan_changes as plans
from meshctl.manifest_keys import compose_files
from meshctl.plan_snapshot import Snapshot, of_cluster
from tests.topology.support import COMPOSE, backend, group, write
from topology.cluster import load

SETTINGS: dict[str, Any] = {
    "region": "us", "kms": "phala", "size": {"default": "tdx.small"},
    "attestation": {"image": None, "require_digests": False},
}  # fmt: skip


def snapshot(folder: Path, *groups: str, settings: dict[str, Any] = SETTINGS, **more: str) -> Snapshot:
    """The snapshot of a cluster with `groups`."""
    found = load(write(folder, *groups, **more))
    return of_cluster(found, {app: path.read_text() for app, path in compose_files(found).items()}, settings)


@pytest.fixture
def before(tmp_path: Path) -> Snapshot:
    """Two groups of two."""
    return snapshot(tmp_path / "before", group("api"), group("worker", backends=backend("worker", port="9090")))


def changes(plan: plans.Plan, *kinds: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Kind and name to action and effect."""
    return {(c.kind, c.name): (c.action, c.effect) for c in plan.changes if not kinds or c.kind in kinds}


def test_nothing_changes_between_equal_clusters(before: Snapshot) -> None:
    """An empty plan needs no manifest."""
    plan = plans.compare(before, before, "itself")
    assert plan.changes == ()
    assert not plan.needs_manifest


def test_against_nothing_everything_is_new(before: Snapshot) -> None:
    """Every CVM is made, with its routes, rights and images."""
    plan = plans.compare(None, before, "nothing")
    assert plan.cvms(plans.CREATE) == ("api-0", "api-1", "coordinator-0", "worker-0", "worker-1")
    assert {change.action for change in plan.changes} == {"add"}
    assert {change.effect for change in plan.changes if change.kind in ("image", "compose")} == {plans.CREATE}


def test_more_and_fewer_replicas(before: Snapshot, tmp_path: Path) -> None:
    """Slots are made and deleted at the end; nobody else's CVM is touched."""
    after = snapshot(
        tmp_path, group("api", replicas="1"), group("worker", replicas="3", backends=backend("worker", port="9090"))
    )
    plan = plans.compare(before, after, "")
    assert changes(plan) == {
        ("cvm", "worker-2"): ("add", plans.CREATE),
        ("cvm", "api-1"): ("remove", plans.DELETE),
    }
    assert plan.needs_manifest


def test_a_group_that_comes_and_one_that_goes(before: Snapshot, tmp_path: Path) -> None:
    """With its routes, ports and images; and code that dials the lost name is warned of."""
    after = snapshot(tmp_path, group("api"), group("cache", replicas="1", backends=backend("cache", port="6379")))
    plan = plans.compare(before, after, "")
    found = changes(plan)
    assert found["cvm", "cache-0"] == found["image", "cache/app"] == ("add", plans.CREATE)
    assert found["cvm", "worker-1"] == found["compose", "worker"] == ("remove", plans.DELETE)
    assert found["route", "worker"] == found["vip", "worker"] == ("remove", plans.MANIFEST)
    assert any("code that dials worker" in warning for warning in plan.warnings)
    assert not any(name.startswith("api") for _, name in found)


def test_routes_and_secrets_restart_nobody(before: Snapshot, tmp_path: Path) -> None:
    """They come with the manifest that is set."""
    more = 'secrets = { word = { grant = ["worker"] } }'
    api = group("api", routes='api = { backend = "api", vip = "127.10.9.9" }\nmore = { backend = "api" }', more=more)
    after = snapshot(tmp_path, api, group("worker", backends=backend("worker", port="9090")))
    plan = plans.compare(before, after, "")
    assert changes(plan) == {
        ("vip", "api"): ("change", plans.MANIFEST),
        ("route", "more"): ("add", plans.MANIFEST),
        ("vip", "more"): ("add", plans.MANIFEST),
        ("secret", "word"): ("add", plans.MANIFEST),
    }
    assert plan.needs_manifest


def test_ports_and_rights_restart_nobody(before: Snapshot, tmp_path: Path) -> None:
    """A CVM that runs registers and checks what the newest manifest has."""
    rights = 'consul_permissions = { key_prefixes = ["x"], session_write = true }'
    after = snapshot(tmp_path, group("api"), group("worker", backends=backend("worker", port="9191", more=rights)))
    plan = plans.compare(before, after, "")
    assert changes(plan) == {
        ("route", "worker"): ("change", plans.MANIFEST),
        ("port", "worker/worker"): ("change", plans.MANIFEST),
        ("permission", "worker/worker"): ("change", plans.MANIFEST),
    }
    assert plan.needs_manifest


def test_callers_reach_running_cvms_with_the_manifest(tmp_path: Path) -> None:
    """Another group that calls a database restarts no CVM of it."""
    groups = [group("db", more="calls = []"), group("web", more="calls = []")]
    one = snapshot(tmp_path / "one", *groups)
    other = snapshot(tmp_path / "other", groups[0], groups[1].replace("calls = []", 'calls = ["db"]'))
    plan = plans.compare(one, other, "")
    assert changes(plan) == {("callers", "db/db"): ("change", plans.MANIFEST)}
    assert plan.needs_manifest
    assert plan.document()["calls"]["web"] == {"may_call": ["db"], "called_by": {"web": []}}


def test_a_cluster_that_does_not_say_who_calls_is_asked(before: Snapshot, tmp_path: Path) -> None:
    """Also where everything is new; with one word about calls the question is answered."""
    for plan in (plans.compare(None, before, ""), plans.compare(before, before, "")):
        assert any("who dials what?" in warning for warning in plan.warnings)
    told = snapshot(tmp_path, group("api", more="calls = []"))
    assert not any("who dials what?" in warning for warning in plans.compare(before, told, "").warnings)


def test_signed_values_are_to_be_signed_first(tmp_path: Path) -> None:
    """An application starts only with what is signed; a new name is a new revision, which has its order already."""
    one, other, named = (
        snapshot(tmp_path / name, group("a", more=f"compose_env = {text}"))
        for name, text in (("one", '{ A = "1" }'), ("other", '{ A = "2" }'), ("named", '{ A = "2", B = "1" }'))
    )
    plan = plans.compare(one, other, "")
    assert [text for text in plan.warnings if "a/A" in text and "set them before you apply" in text] != []
    assert plan.needs_manifest
    assert not any("before you apply" in text for text in plans.compare(one, named, "").warnings)


def test_values_that_nothing_checks_are_warned_of(tmp_path: Path) -> None:
    """A command that has a variable in it is not seen by exec.sh."""
    compose = COMPOSE.replace('["/app/app"]', '["/app/app", "$A"]')
    plan = plans.compare(None, snapshot(tmp_path, group("a", more='compose_env = { A = "1" }'), compose=compose), "")
    assert any("a services.app.command: A" in warning for warning in plan.warnings)


def test_variables_that_lead_nowhere_are_warned_of(tmp_path: Path) -> None:
    """A value that no file uses, and a variable that nothing sets and has no default: both are misspelt, as a rule."""
    environment = (
        "    environment: { A: $A, B: '${B}', C: '${C:-1}', D: '${D:?no}', X: $$E }\n    volumes:\n      - /tmp"
    )
    compose = COMPOSE.replace("    volumes:\n      - /tmp", environment)
    plans_ = [
        plans.compare(
            None, snapshot(tmp_path / values[0], group("a", more=f"compose_env = {{ {values} }}"), compose=compose), ""
        )
        for values in ('A = "1", D = "2", E = "3"', 'B = "1", A = "1", D = "2"')
    ]
    told = [[text for text in plan.warnings if "nothing uses" in text or "nothing sets" in text] for plan in plans_]
    assert told[1] == []
    assert [("a E;" in text, "a B;" in text, "C" in text.partition(":")[2].partition(";")[0]) for text in told[0]] == [
        (True, False, False),
        (False, True, False),
    ]


def test_an_image_is_a_new_revision_of_its_app(before: Snapshot, tmp_path: Path) -> None:
    """The compose file is measured: all CVMs that run it are updated."""
    groups = (group("api"), group("worker", backends=backend("worker", port="9090")))
    after = snapshot(tmp_path, *groups, compose=COMPOSE.replace("app:1", "app:2"))
    plan = plans.compare(before, after, "")
    assert plan.cvms(plans.REDEPLOY) == ("api-0", "api-1", "worker-0", "worker-1")
    assert changes(plan, "image") == {("image", f"{app}/app"): ("change", plans.REDEPLOY) for app in ("api", "worker")}


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        ('{ A = "1" }', '{ A = "2" }', plans.RESTART),
        ('{ A = "1" }', '{ A = "1", B = "" }', plans.REDEPLOY),
        ("{}", '{ A = "1" }', plans.REDEPLOY),
    ],
)
def test_values_of_variables_restart_and_names_redeploy(tmp_path: Path, old: str, new: str, effect: str) -> None:
    """dstack measures which variables there may be, the manifest what they hold."""
    one, other = (
        snapshot(tmp_path / name, group("a", more=f"compose_env = {text}"), group("b"))
        for name, text in (("one", old), ("other", new))
    )
    plan = plans.compare(one, other, "")
    fates = {name: fate for (_, name), (_, fate) in changes(plan, "cvm").items()}
    assert fates == {"a-0": effect, "a-1": effect}
    assert plan.needs_manifest
    assert set(changes(plan, "environment").values()) <= {("change", effect), ("add", effect)}


@pytest.mark.parametrize(
    ("setting", "value", "effect", "cvms"),
    [
        ("region", "eu", plans.REPLACE, 5),
        ("kms", "other", plans.REPLACE, 5),
        ("size", {"default": "tdx.small", "api": "tdx.large"}, plans.RESTART, 2),
        ("attestation", {"image": "dstack-0.6.0"}, plans.RESTART, 5),
        (
            "attestation",
            {"image": None, "require_digests": True},
            plans.NONE,
            0,
        ),
    ],
)
def test_what_only_terraform_uses(
    before: Snapshot, tmp_path: Path, setting: str, value: Any, effect: str, cvms: int
) -> None:
    """Region and key service replace every CVM; sizes and OS images change in place."""
    groups = (group("api"), group("worker", backends=backend("worker", port="9090")))
    after = snapshot(tmp_path, *groups, settings={**SETTINGS, setting: value})
    plan = plans.compare(before, after, "")
    assert changes(plan, "setting") == {("setting", setting): ("change", effect)}
    assert len(plan.cvms(effect)) == cvms


@pytest.mark.parametrize(
    "settings",
    [
        {"rendezvous": [{"public_key": "k", "endpoint": "1.2.3.4:51820"}]},
        {"attestation": {"require_digests": False, "allowed_tcb_statuses": ["OutOfDate"]}},
    ],
)
def test_what_evidence_has_to_show_and_the_rendezvous_come_with_the_manifest(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Nobody restarts; who runs keeps the rendezvous that it knows, which is said."""
    given = {**SETTINGS, "rendezvous": []}
    one, other = (
        snapshot(tmp_path / str(i), group("a"), settings=it) for i, it in enumerate([given, {**given, **settings}])
    )
    plan = plans.compare(one, other, "")
    assert set(changes(plan).values()) == {("change", plans.MANIFEST)}
    assert plan.needs_manifest
    assert any("until they start anew" in warning for warning in plan.warnings) == ("rendezvous" in settings)


def test_another_coordinator_restarts_all(tmp_path: Path) -> None:
    """The new one is made; every CVM is told where it is."""
    folder = write(tmp_path, group("a"))
    snapshots = []
    for count in ("1", "3"):
        found = load(folder, {"coordinators": count})
        snapshots.append(
            of_cluster(found, {app: path.read_text() for app, path in compose_files(found).items()}, SETTINGS)
        )
    plan = plans.compare(snapshots[0], snapshots[1], "")
    assert plan.cvms(plans.CREATE) == ("coordinator-1", "coordinator-2")
    assert plan.cvms(plans.RESTART) == ("a-0", "a-1", "coordinator-0")


def test_another_name_replaces_everything(before: Snapshot, tmp_path: Path) -> None:
    """The name is part of every app's, so of every compose hash and identity."""
    groups = (group("api"), group("worker", backends=backend("worker", port="9090")))
    folder = write(tmp_path, *groups)
    (folder / "terraform.tfvars").write_text('cluster_name = "other"\n')
    found = load(folder)
    after = of_cluster(found, {app: path.read_text() for app, path in compose_files(found).items()}, SETTINGS)
    plan = plans.compare(before, after, "")
    assert len(plan.cvms(plans.REPLACE)) == 5
    assert any("renamed from demo to other" in warning for warning in plan.warnings)
    assert ("change", plans.MANIFEST) in changes(plan, "permission").values()


def test_tags_are_warned_of(before: Snapshot, tmp_path: Path) -> None:
    """Where the policy takes them; where it does not, they are refused before there is anything to warn of."""
    strict = snapshot(tmp_path, group("a"), settings={})
    assert not any("by tag" in warning for warning in plans.compare(None, strict, "").warnings)
    assert any("can be moved" in warning for warning in plans.compare(None, before, "").warnings)


def test_the_document_is_the_documented_one(before: Snapshot) -> None:
    """Its fields are a contract."""
    document = plans.compare(None, before, "nothing").document()
    assert set(document) == {
        "cluster", "against", "changes", "cvms", "needs_manifest", "calls", "listens", "egress", "warnings",
    }  # fmt: skip
    assert document["calls"]["api"] == {"may_call": ["api", "worker"], "called_by": {"api": ["*"]}}
    assert set(document["changes"][0]) == {"kind", "name", "action", "before", "after", "effect", "note"}
    assert set(document["cvms"]) == {"create", "delete", "replace", "redeploy", "restart"}
    assert {change["effect"] for change in document["changes"]} <= set(plans.EFFECTS)


def test_coordinators_that_leave_no_majority_are_warned_of() -> None:
    """From three to two: one warning; to one: another one, since those that stay may miss something."""
    three = [f"coordinator-{n}" for n in range(3)]
    assert list(plans.coordinators_go(three, three)) == []
    assert list(plans.coordinators_go(three[:1], three)) == []
    (said,) = plans.coordinators_go(three, three[:2])
    assert "coordinator-2" in said
    _, majority = plans.coordinators_go(three, three[:1])
    assert "1 of 3 coordinators stay" in majority
    assert len(list(plans.coordinators_go(three[:2], three[:1]))) == 2


def test_an_egress_is_a_matter_of_the_manifest(tmp_path: Path) -> None:
    """One that appears, leads elsewhere or goes restarts nobody."""
    entry = 'egress = [{ name = "x", listen = "127.137.0.1:81", remote = "%s:443", tls = "web" }]'
    found = [
        snapshot(tmp_path / str(number), group("a", more=more))
        for number, more in enumerate(("", entry % "one.example", entry % "two.example"))
    ]
    for before, after, action in ((0, 1, "add"), (1, 2, "change"), (2, 0, "remove")):
        plan = plans.compare(found[before], found[after], "before")
        assert changes(plan) == {("egress", "a/x"): (action, plans.MANIFEST)}
        assert plan.needs_manifest
