"""`./mesh set`: what is asked, shown, refused and set. In a lab: tests/e2e/test_set.py."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from evidence.documents import digest
from meshctl import owner_access, set_command
from meshctl.asking import Answer, Question
from meshctl.cli import cli
from meshctl.errors import UserError
from meshctl.owner_access import Lab, Mesh
from meshctl.set_command import put
from tests.coordinator.setting import enforce
from tests.coordinator.test_waiting import waits
from tests.coordinator.world import API_COMPOSE, COORDINATOR_COMPOSE, OWNER, OWNERS, TEE, cluster, make_manifest
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed, open_envelope, seal
from topology.handover import Handover
from topology.manifest import decode

FIRST = opened(make_manifest(), OWNER)
NEXT = opened(after(FIRST, leaf_hours=9), OWNER)
URL = "https://one.test"


class Coordinator:
    """Answers as one does; notes what it was asked."""

    def __init__(self, head: Signed = FIRST, refusal: Answer | None = None) -> None:
        self.head, self.refusal = head, refusal
        self.asked: list[Question] = []

    def ask(self, question: Question) -> Answer:
        """The head, or the refusal of a POST."""
        self.asked.append(question)
        if question.body is not None:
            if self.refusal is not None:
                return self.refusal
            self.head = open_envelope(str(question.body["envelope"]), OWNERS)
        return Answer(tree={"epoch": 0, "digest": "", "envelope": self.head.envelope})

    @property
    def mesh(self) -> Mesh:
        """The mesh that it coordinates."""
        return Mesh(name="m", url=URL, ask=self.ask)


def test_the_next_manifest_is_shown_and_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The coordinator is judged by that very manifest, each time."""
    one = Coordinator()
    put(one.mesh, NEXT.envelope, yes=True)
    assert [(q.method, q.references, q.path) for q in one.asked] == [
        ("GET", NEXT.envelope, "/v1/manifest"),
        ("POST", NEXT.envelope, "/v1/manifest"),
        ("GET", NEXT.envelope, "/v1/manifest"),
    ]
    out = capsys.readouterr().out
    assert "leaf_hours" in out
    assert f"set: epoch 2, digest {NEXT.digest}" in out


def test_the_same_again_is_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is sent but the question what is in force, to the one that is named and then to all."""
    one = Coordinator(NEXT)
    put(one.mesh, NEXT.envelope, yes=True)
    assert [q.method for q in one.asked] == ["GET", "GET"]
    assert f"in force already: epoch 2, digest {NEXT.digest}" in capsys.readouterr().out


def test_texts_are_handed_over_once_the_manifest_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    """Also when it was so before; hashes without a text are named."""
    for one in (Coordinator(), Coordinator(NEXT)):
        put(one.mesh, NEXT.envelope, yes=True, documents={digest(API_COMPOSE): API_COMPOSE})
        bodies = [question.body for question in one.asked if "documents" in (question.body or {})]
        assert bodies == [{"envelope": NEXT.envelope, "documents": {digest(API_COMPOSE): API_COMPOSE}}]
        out = capsys.readouterr().out
        assert "1 handed over" in out
        assert f"none for coordinator, compose hash {digest(COORDINATOR_COMPOSE)}" in out


class Lacking(Coordinator):
    """One that enforces NEXT, and keeps what it lacks in its history."""

    def ask(self, question: Question) -> Answer:
        self.asked.append(question)
        if question.body is not None and self.refusal is not None:
            return self.refusal
        return Answer(tree={"epoch": 2, "digest": "", "envelope": NEXT.envelope})


def test_an_older_manifest_is_set_only_where_the_history_lacks_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else changes, and no text goes with it."""
    one = Lacking()
    put(one.mesh, FIRST.envelope, yes=True, documents={"ab" * 32: "text"})
    assert [q.method for q in one.asked] == ["GET", "POST"]
    assert "kept: the history lacked it. In force is epoch 2" in capsys.readouterr().out
    full = Lacking(refusal=Answer(tree={}, code="MANIFEST_REFUSED", reason="older"))
    with pytest.raises(UserError, match="is older than epoch 2"):
        put(full.mesh, FIRST.envelope, yes=True)


def test_a_coordinator_that_is_away_leaves_no_file_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """What is in force is said before the others are asked, and the texts are handed over."""

    class Away(Coordinator):
        def ask(self, question: Question) -> Answer:
            if any("documents" in (it.body or {}) for it in self.asked):
                raise UserError("away", exit_code=1)
            return super().ask(question)

    one, told = Away(), []
    with pytest.raises(UserError, match="not seen in force on all coordinators"):
        put(
            one.mesh,
            NEXT.envelope,
            yes=True,
            documents={digest(API_COMPOSE): API_COMPOSE},
            in_force=lambda: told.append(one.head),
        )
    assert told == [NEXT]
    assert "1 handed over" in capsys.readouterr().out


class Beginning:
    """Three coordinators, of which some wait for a manifest, some have one, and some are away."""

    def __init__(self, *states: str) -> None:
        self.states = {f"https://{n}.test": state for n, state in enumerate(states)}
        self.manifest = opened(make_manifest(coordinators=len(states), urls=tuple(self.states)), OWNER)

    def ask(self, question: Question) -> Answer:
        """As each of them answers."""
        state = self.states[question.url]
        if state == "away":
            raise UserError(f"{question.url} cannot be reached", exit_code=1)
        if question.method == "POST":
            self.states[question.url] = "starts"
            return Answer(tree={"envelope": self.manifest.envelope})
        if state == "starts" and "waits" not in self.states.values():
            return Answer(tree={"envelope": self.manifest.envelope})
        if state == "foreign":
            return Answer(tree={"envelope": NEXT.envelope})
        return Answer(tree={}, code={"waits": "NO_MANIFEST", "starts": "NOT_READY"}[state], reason=state)

    @property
    def mesh(self) -> Mesh:
        """As the first is asked."""
        return Mesh(name="m", url="https://0.test", ask=self.ask)


def test_the_first_manifest_is_set_on_each_that_waits(capsys: pytest.CaptureFixture[str]) -> None:
    """One that has it already is left alone; what it says of the mesh is shown before."""
    three = Beginning("waits", "starts", "waits")
    put(three.mesh, three.manifest.envelope, yes=True)
    assert set(three.states.values()) == {"starts"}
    out = capsys.readouterr().out
    assert "group api" in out
    assert f"set: epoch 1, digest {three.manifest.digest}" in out


def test_a_beginning_that_not_all_took_is_said() -> None:
    """The others have it; the same again does the rest."""
    three = Beginning("waits", "away", "waits")
    with pytest.raises(UserError, match=r"https://1.test: https://1.test cannot be reached"):
        put(three.mesh, three.manifest.envelope, yes=True)
    assert list(three.states.values()) == ["starts", "away", "starts"]


def test_a_coordinator_with_another_manifest_is_no_success() -> None:
    """Nor is one that refuses for another reason than that it begins."""
    three = Beginning("waits", "foreign", "waits")
    with pytest.raises(UserError, match=r"https://1.test has another manifest: epoch 2"):
        put(three.mesh, three.manifest.envelope, yes=True)


def test_a_later_manifest_is_no_first_one() -> None:
    """A coordinator without any, where the mesh had one: another mesh may answer, so nothing is sent unasked."""
    three = Beginning("waits", "waits", "waits")
    with pytest.raises(UserError, match="follows another one") as caught:
        put(three.mesh, NEXT.envelope, yes=True)
    assert "--first" in caught.value.remedy
    assert set(three.states.values()) == {"waits"}


def test_new_coordinators_begin_with_the_manifest_that_hands_the_mesh_over(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --first: it says itself that another app has the mesh until then. A person sees whose, and until when."""
    three = Beginning("waits", "waits")
    given = Handover(from_app_id="aa" * 20, until=2_000_000_000, urls=("https://former.test",))
    own = dataclasses.replace(three.manifest.manifest.coordinators, handover=given)
    three.manifest = opened(after(three.manifest, coordinators=own), OWNER)
    put(three.mesh, three.manifest.envelope, yes=True)
    assert set(three.states.values()) == {"starts"}
    out = capsys.readouterr().out
    assert f"take the mesh over from app {'aa' * 20} at https://former.test" in out
    assert "until 2033-05-18 03:33 UTC" in out


def test_what_a_coordinator_does_not_enforce_is_named() -> None:
    """All coordinators of the manifest are asked: one that answered alone proves nothing of the others."""
    two = opened(make_manifest(coordinators=2, urls=(URL, "https://other.test")), OWNER)
    following = opened(after(two, leaf_hours=9), OWNER)

    def ask(question: Question) -> Answer:
        return Answer(tree={"envelope": (following if question.url == URL else two).envelope})

    mesh = Mesh(name="m", url=URL, ask=ask)
    with pytest.raises(UserError, match=r"coordinator-1: https://other.test enforces epoch 1"):
        set_command.confirm_everywhere(mesh, following, seconds=0.0)


def test_nothing_is_set_without_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end of input is none; where there is no terminal, the option is named."""
    one = Coordinator()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match="nothing was set") as caught:
        put(one.mesh, NEXT.envelope, yes=False)
    assert "--yes" in caught.value.remedy
    assert [q.method for q in one.asked] == ["GET"]


def test_what_does_not_follow_is_not_sent() -> None:
    """The person learns of it before anything changes."""
    one = Coordinator(opened(after(FIRST, leaf_hours=10), OWNER))
    with pytest.raises(UserError, match="two were signed for one epoch"):
        put(one.mesh, NEXT.envelope, yes=True)
    assert [q.method for q in one.asked] == ["GET"]


def run(*arguments: str) -> Result:
    """`./mesh set ARGUMENTS`."""
    return CliRunner().invoke(cli, ["set", *arguments])


def refused(result: Result, words: str) -> None:
    """It ended with a message that has `words`."""
    assert isinstance(result.exception, UserError), result.output
    assert words in str(result.exception)


def test_only_what_is_signed_goes_to_a_deployment(tmp_path: Path) -> None:
    """Nobody is asked anything before the file is a signed manifest."""
    draft = tmp_path / "manifest.json"
    draft.write_text(json.dumps(json.loads(seal_payload())))
    refused(run("-c", URL, "--manifest", str(draft)), "a draft that nobody has signed")
    draft.write_text("garbage")
    refused(run("-c", URL, "--manifest", str(draft)), str(draft))
    refused(run("-c", URL, "--manifest", str(tmp_path / "none")), "cannot be read")
    refused(run("-c", URL, "--edit"), "are for labs")
    refused(run("-c", URL), "say what to set")
    refused(run("-c", URL, "--edit", "--manifest", str(draft)), "say what to set")


def seal_payload() -> bytes:
    """A draft's JSON."""
    from topology.manifest import encode

    return encode(NEXT.manifest)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """A lab whose coordinator answers here."""
    one = Coordinator()
    pem = OWNER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "owner.pem").touch(mode=0o600)
    (tmp_path / "owner.pem").write_bytes(pem)
    (tmp_path / "manifest.signed").write_text(FIRST.envelope)
    monkeypatch.setattr(owner_access, "lab", lambda _, **__: Lab(mesh=one.mesh, folder=tmp_path))
    return one


def test_a_labs_manifest_is_drafted_edited_and_set(lab: Coordinator, tmp_path: Path) -> None:
    """Its owner's key is the lab's; the draft follows what is in force."""
    draft = tmp_path / "draft.json"
    assert run("--draft", str(draft)).exit_code == 0
    tree: dict[str, Any] = json.loads(draft.read_text())
    assert decode(draft.read_bytes()) == after(FIRST)
    draft.write_text(json.dumps(tree | {"leaf_hours": 9}))
    done = run("--manifest", str(draft), "--yes")
    assert done.exit_code == 0, done.output
    assert (lab.head.manifest, lab.head.digest) == (NEXT.manifest, NEXT.digest)
    draft.write_text(json.dumps(tree | {"leaf_hours": 9999}))
    refused(run("--manifest", str(draft), "--yes"), "manifest.leaf_hours is 9999")


def test_a_manifest_is_edited_in_an_editor(lab: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real program changes the file; one that changes nothing sets nothing."""
    monkeypatch.setenv("EDITOR", "true")
    refused(run("--edit", "--yes"), "nothing was changed")
    monkeypatch.setenv("EDITOR", 'sed -i \'s/"leaf_hours": 8/"leaf_hours": 9/\'')
    done = run("--edit", "--yes")
    assert done.exit_code == 0, done.output
    assert lab.head.digest == NEXT.digest


def test_a_signed_manifest_is_set_in_a_lab_as_it_is(lab: Coordinator, tmp_path: Path) -> None:
    """Signed by whoever may sign there."""
    (tmp_path / "next").write_text(seal(NEXT.manifest, OWNER) + "\n")
    assert run("--manifest", str(tmp_path / "next"), "--yes").exit_code == 0
    assert lab.head.digest == NEXT.digest


async def test_a_deployed_mesh_is_asked_attested_and_set(tmp_path: Path) -> None:
    """Three coordinators that wait for a manifest, then a mesh that runs; a simulated TEE has to be asked for."""
    async with cluster(3) as mesh:
        for n in range(3):
            await waits(mesh, n)
        first = opened(mesh.manifest, OWNER)
        (tmp_path / "root.der").write_bytes(TEE.root_der)
        (tmp_path / "first").write_text(first.envelope)
        url = mesh.running[1].url
        trusted = ["--pccs", mesh.pccs_url, "--insecure-root", str(tmp_path / "root.der")]

        async def asked(name: str, *more: str) -> Result:
            return await asyncio.to_thread(run, "-c", url, "-m", str(tmp_path / name), "--yes", *more)

        refused(await asked("first", *trusted[:2]), "evidence is refused")
        begun = await asked("first", *trusted)
        assert begun.exit_code == 0, begun.output + repr(begun.exception)
        assert "set on https://" in begun.output, "the others may have it from this one"
        assert "INSECURE" in begun.output
        for n in range(3):
            await mesh.ready(n, 40.0)
        second = opened(after(first, leaf_hours=9), OWNER)
        (tmp_path / "second").write_text(second.envelope)
        while (done := await asked("second", *trusted)).exit_code != 0:
            assert "NOT_READY" in str(done.exception), "on a busy machine Consul's leader may change"
        assert f"set: epoch 2, digest {second.digest}" in done.output
        leads = list(mesh.running.values())
        await eventually(lambda: enforce(leads, second.digest), "all enforce it")
        assert "in force already" in (await asked("second", *trusted)).output
