"""`./mesh generate --from preflight`: the next revision is let in beside the one that runs, before it is deployed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from meshctl import preflight
from tests.meshctl.test_manifest import Owner, owner, refused
from tests.terraform.deployed import PRE_LAUNCH_HASH, app_compose
from topology.cluster import load
from topology.manifest import decode
from topology.problems import ClusterError
from topology.render import environment_names

__all__ = ["owner"]


class Update:
    """An owner whose mesh runs, and who changes a compose file."""

    def __init__(self, owner: Owner, folder: Path) -> None:
        self.owner, self.file = owner, folder / "preflight.json"
        assert owner.generate().exit_code == 0
        assert owner.sign().exit_code == 0
        self.before = decode(owner.draft.read_bytes()).groups["worker"]
        self.compose = owner.cluster / "compose" / "worker.yaml"
        self.compose.write_text(self.compose.read_text() + "# next\n")
        names = environment_names(load(owner.cluster).group("worker"))
        self.text = app_compose(
            {"name": "starter-worker", "docker_compose": self.compose.read_text(), "env": dict.fromkeys(names),
             "gateway_enabled": True, "public_logs": False, "public_sysinfo": False, "public_tcbinfo": True,
             "secure_time": True, "storage_fs": "zfs"}
        )  # fmt: skip

    def run(self, *more: str, **changes: Any) -> Any:
        """Generates with what the cloud says of the next revision."""
        worker = {"app_id": self.before.app_id, "compose_hash": hashlib.sha256(self.text.encode()).hexdigest(),
                  "app_compose": self.text, **changes}  # fmt: skip
        self.file.write_text(json.dumps({"format": 1, "cluster": "starter", "apps": {"worker": worker}}))
        accepted = more or ("--accept-pre-launch", PRE_LAUNCH_HASH)
        fixed = ("generate", str(self.owner.cluster), "--from", "preflight", "--preflight", str(self.file))
        return self.owner.run(*fixed, *accepted)


@pytest.fixture
def update(owner: Owner, tmp_path: Path) -> Update:
    """One that is about to happen."""
    return Update(owner, tmp_path)


def test_both_revisions_are_let_in(update: Update) -> None:
    """What runs stays in; nothing else changes, and an edit by hand stays."""
    update.owner.edit(leaf_hours=9)
    done = update.run()
    assert done.exit_code == 0, done.exception
    made = decode(update.owner.draft.read_bytes())
    new = hashlib.sha256(update.text.encode()).hexdigest()
    assert made.groups["worker"].compose_hashes == (new, *update.before.compose_hashes)
    assert (made.leaf_hours, made.epoch) == (9, 2)
    assert "+ " not in done.output.replace(f'→ ["{new}', "")
    assert update.owner.sign().exit_code == 0


def test_a_preflight_makes_no_edit_its_own(update: Update) -> None:
    """It says nothing of references. What a person added to those in force is still that person's: what is generated
    from the deployment afterwards leaves it.
    """
    owner = update.owner
    [measured] = json.loads(owner.draft.read_text())["references"]
    added = [{**measured, "tcb": {**measured["tcb"], "grace_until": 7}}, {**measured, "name": "next"}]
    update.compose.write_text(update.compose.read_text().removesuffix("# next\n"))
    owner.edit(references=added)
    assert owner.generate().exit_code == 0
    assert owner.sign().exit_code == 0
    update.compose.write_text(update.compose.read_text() + "# next\n")
    assert update.run().exit_code == 0
    assert json.loads(owner.draft.read_text())["references"] == added
    update.compose.write_text(update.compose.read_text().removesuffix("# next\n"))
    assert owner.generate().exit_code == 0
    assert json.loads(owner.draft.read_text())["references"] == added


def test_without_its_text_a_hash_is_the_clouds_word(update: Update) -> None:
    """And a person is told so."""
    done = update.run(app_compose=None)
    assert done.exit_code == 0, done.exception
    assert "look at: app 'worker': that its files will measure" in done.output


def test_what_does_not_fit_is_refused(update: Update, owner: Owner) -> None:
    """Another text than the hash, another app, a script that nobody read, a file of before."""
    refused(update.run(compose_hash="7" * 64), "SHA-256 of its app_compose is", "not " + "7" * 64)
    refused(update.run(app_id="8" * 40), "another app")
    refused(update.run("--accept-pre-launch", "0" * 64), "will measure a pre-launch script")
    odd = "[]"
    refused(update.run(app_compose=odd, compose_hash=hashlib.sha256(odd.encode()).hexdigest()), "is no object")
    update.compose.write_text(update.compose.read_text() + "# later\n")
    refused(update.run(), "will measure another compose file than the one here")
    refused(owner.run("generate", str(owner.cluster), "--from", "preflight"), "belong together")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "cluster": "x", "apps": []}'])
def test_other_texts_are_refused(text: str) -> None:
    """With the form that is expected."""
    with pytest.raises(ClusterError, match='"compose_hash"'):
        preflight.read(text)
