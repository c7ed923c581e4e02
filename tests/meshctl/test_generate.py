"""`./mesh generate`: what is computed, what a person edited, what is refused. In a lab: tests/e2e/test_trust.py."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from meshctl import documents, generate_sources
from meshctl.manifest_keys import load
from tests.meshctl.test_manifest import Owner, owner, refused
from tests.meshctl.test_manifest_facts import outputs
from tests.terraform.deployed import PRE_LAUNCH_HASH, TEE
from tests.topology.support import after
from topology.envelope import open_envelope, seal
from topology.manifest import Rotate, decode
from topology.owners import OWNER_KEY_PLACEHOLDER, text_of
from topology.render import owners_of
from topology.revocation import Revocation

__all__ = ["owner"]

IMAGE = ("os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2")
"""What an OS image is known by."""


def tree(owner: Owner) -> dict[str, Any]:
    """The draft."""
    found: dict[str, Any] = json.loads(owner.draft.read_text())
    return found


def change_cluster(owner: Owner, old: str, new: str) -> None:
    """Somebody edits cluster.tf."""
    file = owner.cluster / "cluster.tf"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))


def test_the_images_that_may_run_must_be_said(owner: Owner) -> None:
    """Neither the cloud's word nor a list is taken unasked."""
    fixed = ("generate", str(owner.cluster), "--outputs", str(owner.printed))
    refused(owner.run(*fixed), "--os-images", "--take-reported-images")
    approved = owner.cluster / "images.json"
    image = TEE.os_image("0.6.0", False)
    approved.write_text(
        json.dumps([{name: getattr(image, name) for name in ("os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2")}])
    )
    assert owner.generate("--os-images", str(approved)).exit_code == 0
    approved.write_text('[{"mrtd": "x"}]')
    refused(owner.generate("--os-images", str(approved)), "is no list of OS images", "os_image_hash")
    approved.write_text("[]")
    refused(owner.generate("--os-images", str(approved)), "approves no OS image")


def test_the_key_provider_must_be_said_too(owner: Owner) -> None:
    """It is the cloud's word: pinned, or taken once in so many words. A change of it is shown as one, and is taken only
    where a person says so.
    """
    fixed = ("generate", str(owner.cluster), "--outputs", str(owner.printed), "--accept-pre-launch", PRE_LAUNCH_HASH)
    reported = (*fixed, "--take-reported-images")
    refused(owner.run(*reported), "is the cloud's word", "--key-provider ID", "--take-reported-provider")
    refused(owner.generate("--key-provider", "ab"), "--key-provider says …ab")
    assert owner.generate("--key-provider", TEE.key_provider.id).exit_code == 0
    again = owner.run(*reported)
    assert again.exit_code == 0, again.exception
    assert "nothing changes" in again.output
    before = owner.draft.read_bytes()
    owner.edit(references=[{**tree(owner)["references"][0], "key_provider": {"name": "kms", "id": "aa" * 91}}])
    generate_sources.beside(owner.draft).write_text(
        generate_sources.beside(owner.draft).read_text().replace(TEE.key_provider.id, "aa" * 91)
    )
    changed = owner.run(*reported)
    refused(changed, f"key provider: kms …{'aa' * 12} → kms …{TEE.key_provider.id[-24:]}", "--accept-platform-change")
    done = owner.run(*reported, "--accept-platform-change")
    assert done.exit_code == 0, done.exception
    assert "look at: taken on the cloud's word: key provider" in done.output
    assert owner.draft.read_bytes() == before


def test_another_image_than_before_is_a_decision(owner: Owner) -> None:
    """What `--take-reported-images` took the first time is no leave for whatever is reported later."""
    owner.generate()
    draft = owner.draft.read_text()
    for path in (owner.draft, generate_sources.beside(owner.draft)):
        path.write_text(draft_with(path.read_text(), "ab" * 48))
    refused(owner.generate(), "is not in the manifest before", "--accept-platform-change")
    done = owner.generate("--accept-platform-change")
    assert done.exit_code == 0, done.exception
    assert "taken on the cloud's word: OS image" in done.output
    assert owner.draft.read_text() == draft


def draft_with(text: str, mrtd: str) -> str:
    """The file as if another OS image had run."""
    return text.replace(TEE.os_image("0.6.0", False).mrtd, mrtd)


def test_equal_input_gives_equal_bytes(owner: Owner) -> None:
    """Generated twice is generated once; `--check` says so, before and after it was signed."""
    first = owner.generate()
    assert first.exit_code == 0, first.exception
    assert "manifest of starter, epoch 1" in first.output
    written = owner.draft.read_bytes()
    again = owner.generate()
    assert "nothing changes" in again.output
    assert owner.draft.read_bytes() == written
    assert owner.generate("--check").exit_code == 0
    assert owner.sign().exit_code == 0
    checked = owner.generate("--check")
    assert "is what a run would write" in checked.output
    assert "is in force: epoch 1" in owner.generate().output
    assert owner.draft.read_bytes() == written


def test_the_texts_behind_the_hashes_are_kept_for_whoever_verifies(owner: Owner) -> None:
    """As `./mesh set` hands them over; what the manifest no longer names goes, what is a person's stays."""
    folder = owner.cluster / "app-compose"
    folder.mkdir()
    old = "[]"
    for name in (hashlib.sha256(old.encode()).hexdigest(), "mine"):
        (folder / f"{name}.json").write_text(old)
    owner.generate()
    made = decode(owner.draft.read_bytes())
    hashes = {it for app in (made.coordinators, *made.groups.values()) for it in app.compose_hashes}
    assert {path.stem for path in folder.iterdir()} == {*hashes, "mine"}
    found, others = documents.read(folder, made)
    assert (set(found), others) == (hashes, ["mine.json"])


def test_edits_stay_and_changes_are_taken(owner: Owner) -> None:
    """A life of certificates that was edited, a hash that was added, and a variable that the cluster has got since."""
    owner.generate()
    groups = tree(owner)["groups"]
    groups["api"]["compose_hashes"].append("7" * 64)
    owner.edit(leaf_hours=9, groups=groups)
    change_cluster(owner, "compose_env = {}", 'compose_env = { MODE = "fast" }')
    owner.gives("api", "MODE")
    done = owner.generate()
    assert done.exit_code == 0, done.exception
    assert '+ groups.api.env.MODE = "fast"' in done.output
    assert "kept, as edited by hand: ~ leaf_hours: 8 → 9" in done.output
    made = decode(owner.draft.read_bytes())
    assert (made.leaf_hours, made.groups["api"].env) == (9, {"MODE": "fast"})
    assert made.groups["api"].compose_hashes[1:] == ("7" * 64,)
    assert owner.generate("--check").exit_code == 0


def test_what_another_owner_has_set_since_is_shown_where_it_would_be_undone(owner: Owner) -> None:
    """The manifest in force has a revocation that the draft lacks; what a person edited is no such thing."""
    owner.generate()
    assert owner.sign().exit_code == 0
    owner.edit(leaf_hours=9)
    quiet = owner.generate().output
    assert "leaf_hours: 8 → 9" in quiet
    assert "is in force and has it otherwise" not in quiet
    signed = owner.cluster / "manifest.signed"
    head = open_envelope(signed.read_text().strip(), None)
    key = load(owner.key)
    signed.write_text(seal(after(head, revoked=(Revocation(peer_id="worker-1"),)), key) + "\n")
    told = owner.generate().output
    assert "is in force and has it otherwise" in told
    assert "revoked" in told.split("has it otherwise")[1]
    assert "leaf_hours" not in told.split("has it otherwise")[1]


def test_counts_that_are_in_force_never_go_down(owner: Owner) -> None:
    """An eviction raised one, which neither the files of the cluster nor the draft say; a greater one stays."""
    owner.generate()
    assert owner.sign().exit_code == 0
    signed = owner.cluster / "manifest.signed"
    head = open_envelope(signed.read_text().strip(), None)
    rotated = after(head, rotate=Rotate(gossip=2), leaf_hours=9)
    signed.write_text(seal(rotated, load(owner.key)) + "\n")
    done = owner.generate()
    assert "~ rotate.gossip: 0 → 2" in done.output
    assert "kept, as edited by hand: ~ rotate" not in done.output
    assert decode(owner.draft.read_bytes()).rotate.gossip == 2
    assert owner.sign().exit_code == 0
    owner.edit(rotate={"gossip": 5, "secrets": {}})
    assert "kept, as edited by hand: ~ rotate.gossip: 2 → 5" in owner.generate().output
    assert decode(owner.draft.read_bytes()).rotate.gossip == 5
    assert owner.sign().exit_code == 0


def test_a_reference_that_was_added_stays(owner: Owner) -> None:
    """With all that it says, and the grace that was written into the measured one; the measured one is taken anew."""
    owner.generate()
    [measured] = tree(owner)["references"]
    other = {**measured, "name": "next", "devices": ["ab" * 16], "os_images": [dict.fromkeys(IMAGE, "0a")]}
    graced = {**measured, "tcb": {**measured["tcb"], "grace_until": 1_900_000_000}}
    owner.edit(references=[other, graced])
    again = owner.generate()
    assert again.exit_code == 0, again.exception
    assert "kept, as edited by hand: + references[next] = " in again.output
    assert "kept, as edited by hand: ~ references[measured].tcb.grace_until: 0 → 1900000000" in again.output
    approved = owner.cluster / "approved.json"
    more = {name: measured["os_images"][0][name] for name in IMAGE} | {"rtmr0": "0b"}
    approved.write_text(json.dumps([*measured["os_images"], more]))
    done = owner.generate("--os-images", str(approved))
    assert done.exit_code == 0, done.exception
    first, second = decode(owner.draft.read_bytes()).references
    assert (first.name, [image.rtmr0 for image in first.os_images][1:]) == ("measured", ["0b"])
    assert first.tcb.grace_until == 1_900_000_000
    assert (second.name, second.devices, [image.rtmr0 for image in second.os_images]) == (
        "next", ("ab" * 16,), ["0a"],
    )  # fmt: skip
    shown = owner.run("sign", str(owner.cluster), "--key", str(owner.key)).output
    shown += owner.run("manifest", "show", str(owner.cluster)).output
    assert "  reference next: what a CVM has to be, all of it\n" in shown
    assert f"    only on the machine {'ab' * 16}\n" in shown
    assert "    TCB UpToDate; out of date counts, too, until 2030-03-17 17:46 UTC\n" in shown


def test_both_changed_is_a_conflict_and_nothing_is_written(owner: Owner) -> None:
    """Both values are named."""
    owner.generate()
    groups = tree(owner)["groups"]
    groups["worker"]["backends"]["worker"]["port"] = 9091
    owner.edit(groups=groups)
    change_cluster(owner, "9090", "9092")
    before = {path.name: path.read_bytes() for path in owner.cluster.glob("manifest*")}
    done = owner.generate()
    refused(done, "groups.worker.backends.worker.port: by hand 9091, computed now 9092", "nothing was written")
    assert {path.name: path.read_bytes() for path in owner.cluster.glob("manifest*")} == before


def test_check_shows_what_a_run_would_change(owner: Owner) -> None:
    """Exit code 1, and nothing is written; also where there is no manifest yet, or only its form differs."""
    nothing = owner.generate("--check")
    refused(nothing, "a run would change", "+ groups = ")
    assert isinstance(nothing.exception, Exception)
    assert getattr(nothing.exception, "exit_code", None) == 1
    assert not owner.draft.exists()
    owner.generate()
    written = owner.draft.read_text()
    before = owner.printed.read_text()
    change_cluster(owner, "compose_env = {}", 'compose_env = { MODE = "fast" }')
    owner.gives("api", "MODE")
    refused(owner.generate("--check"), '+ groups.api.env.MODE = "fast"')
    assert owner.draft.read_text() == written
    change_cluster(owner, 'compose_env = { MODE = "fast" }', "compose_env = {}")
    owner.printed.write_text(before)
    owner.draft.write_text(json.dumps(json.loads(written)))
    refused(owner.generate("--check"), "its form")


def test_a_manifest_that_nobody_generated_is_not_overwritten(owner: Owner) -> None:
    """What differs is a conflict: nothing says whose value it is."""
    owner.generate()
    owner.edit(leaf_hours=9)
    generate_sources.beside(owner.draft).unlink()
    refused(owner.generate(), "leaf_hours: by hand 9, computed now 8")


def test_what_a_person_removed_does_not_come_back_with_a_lost_file(owner: Owner) -> None:
    """Without `manifest.generated.json` nobody knows whether it was removed or is new: both are named, and a person
    says which. After that a run is as quiet as before.
    """
    owner.generate()
    routes = [it for it in tree(owner)["routes"] if it["name"] != "worker"]
    groups = tree(owner)["groups"]
    [measured] = groups["api"]["compose_hashes"]
    groups["api"]["compose_hashes"] = ["7" * 64]
    owner.edit(routes=routes, groups=groups)
    before = owner.draft.read_bytes()
    generate_sources.beside(owner.draft).unlink()
    done = owner.generate()
    refused(done, "whether you removed", "+ routes[worker] = ", f'~ groups.api.compose_hashes: [] → ["{measured}"]')
    assert getattr(done.exception, "exit_code", None) == 1
    assert owner.draft.read_bytes() == before
    left = owner.generate("--lacking", "leave")
    assert left.exit_code == 0, left.exception
    assert owner.draft.read_bytes() == before
    assert "nothing changes" in owner.generate().output
    generate_sources.beside(owner.draft).unlink()
    assert "+ routes[worker] = " in owner.generate("--lacking", "add").output
    assert "worker" in {it["name"] for it in tree(owner)["routes"]}


def test_a_hash_that_was_added_by_hand_survives_an_update(owner: Owner) -> None:
    """Set, and kept with `--keep-hashes`, it is still the person's, and no later run takes it away."""
    owner.generate()
    groups = tree(owner)["groups"]
    groups["api"]["compose_hashes"].append("7" * 64)
    owner.edit(groups=groups)
    assert owner.sign().exit_code == 0
    for more in (("--keep-hashes",), ()):
        done = owner.generate(*more)
        assert done.exit_code == 0, done.exception
        assert tree(owner)["groups"]["api"]["compose_hashes"][1:] == ["7" * 64]


def test_check_looks_at_what_was_generated_too(owner: Owner) -> None:
    """A person wrote what is computed by now: the draft stays, and what the next run compares with is older."""
    owner.generate()
    beside = generate_sources.beside(owner.draft)
    beside.write_text(beside.read_text().replace('"leaf_hours": 8', '"leaf_hours": 7'))
    refused(owner.generate("--check"), "a run would change", "manifest.generated.json")
    before = owner.draft.read_bytes()
    assert owner.generate().exit_code == 0
    assert owner.draft.read_bytes() == before
    assert owner.generate("--check").exit_code == 0


def test_a_draft_that_was_removed_is_made_anew(owner: Owner) -> None:
    """What was generated for it says nothing then."""
    owner.generate()
    written = owner.draft.read_bytes()
    owner.draft.unlink()
    assert owner.generate().exit_code == 0
    assert owner.draft.read_bytes() == written


def test_a_labs_manifest_and_a_deployments_are_not_mixed(owner: Owner) -> None:
    """Each has other owners, apps and coordinators."""
    owner.generate()
    beside = generate_sources.beside(owner.draft)
    beside.write_text(beside.read_text().replace('"outputs"', '"lab"'))
    refused(owner.generate(), "was generated from 'lab'")


@pytest.mark.parametrize("broken", ["", "[]", '{"from": "outputs"}', '{"from": "outputs", "manifest": []}'])
def test_a_file_that_was_spoilt_is_named(owner: Owner, broken: str) -> None:
    """No traceback, and no guess."""
    owner.generate()
    generate_sources.beside(owner.draft).write_text(broken)
    refused(owner.generate(), "manifest.generated.json")


def test_an_edit_that_makes_no_manifest_is_refused(owner: Owner) -> None:
    """The entry is named, and the file stays as the person left it."""
    owner.generate()
    owner.edit(leaf_hours=0)
    before = owner.draft.read_bytes()
    refused(owner.generate(), "manifest.leaf_hours is 0", "mend")
    assert owner.draft.read_bytes() == before


def test_cvms_of_the_revision_before_are_not_let_in_again(owner: Owner) -> None:
    """In an update one CVM measures the new file already: the older hash goes, unless both are wanted."""
    public = owners_of((owner.cluster / "compose" / "worker.yaml").read_text())
    assert public is not None
    owner.generate()
    owner.sign()
    file = owner.cluster / "compose" / "worker.yaml"
    older = file.read_text()
    file.write_text(older + "# changed\n")

    def measured(text: str) -> dict[str, Any]:
        texts = {name: (owner.cluster / "compose" / f"{name}.yaml").read_text() for name in ("coordinator", "api")}
        return outputs(**{name: {"docker_compose_file": it} for name, it in {**texts, "worker": text}.items()})["apps"]

    assert OWNER_KEY_PLACEHOLDER not in older
    assert text_of(public) in older
    printed = json.loads(owner.printed.read_text())
    before, after = measured(older)["worker"], measured(file.read_text())["worker"]
    printed["apps"]["worker"] = {**before, "others": [after["attestation"]]}
    owner.printed.write_text(json.dumps(printed))
    was = tree(owner)["groups"]["worker"]["compose_hashes"]
    both = owner.generate("--keep-hashes")
    assert both.exit_code == 0, both.exception
    assert len(tree(owner)["groups"]["worker"]["compose_hashes"]) == 2
    done = owner.generate()
    assert "a CVM of the revision before" in done.output
    now = tree(owner)["groups"]["worker"]["compose_hashes"]
    assert len(now) == 1
    assert now != was
    printed["apps"]["worker"] = {**after, "others": [measured("x: y\n")["worker"]["attestation"]]}
    owner.printed.write_text(json.dumps(printed))
    refused(owner.generate(), "measured another compose file than the one here")
