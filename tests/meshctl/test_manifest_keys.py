"""`./mesh keygen`: one key per cluster, in the owner's hands, its public half in every compose file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshctl import manifest_keys
from meshctl.cli import cli
from meshctl.errors import UserError
from tests.support import ROOT
from topology.owners import OWNER_KEY_PLACEHOLDER, Owners, key_of
from topology.render import owners_of


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the starter; the owner's configuration is beside it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "starter"))


def keygen(cluster: Path, *more: str) -> Result:
    """Runs the command."""
    return CliRunner().invoke(cli, ["keygen", str(cluster), *more])


def test_a_key_is_made_once_and_its_public_half_put_in_place(cluster: Path, tmp_path: Path) -> None:
    """The private half is for its owner's eyes; a second run changes nothing."""
    first = keygen(cluster)
    path = tmp_path / "config" / "cvm-mesh" / "starter.owner.pem"
    assert first.exit_code == 0
    assert f"made the owner key {path}" in first.output
    assert path.stat().st_mode & 0o777 == 0o600
    texts = [file.read_text() for file in sorted((cluster / "compose").iterdir())]
    assert {owners_of(text) for text in texts} == {Owners(keys=(key_of(manifest_keys.load(path)),))}
    assert not any(OWNER_KEY_PLACEHOLDER in text for text in texts)
    private = path.read_text()
    assert private.splitlines()[1] not in first.output
    second = keygen(cluster)
    assert "found the owner key" in second.output
    assert "have it already" in second.output
    assert path.read_text() == private
    assert [file.read_text() for file in sorted((cluster / "compose").iterdir())] == texts


def test_a_copy_is_told_that_it_shares_its_names_key(cluster: Path, tmp_path: Path) -> None:
    """Two folders of one cluster's name get one key; a name of its own ends that."""
    copy = Path(shutil.copytree(cluster, tmp_path / "mine"))
    assert "warning" not in keygen(cluster).output
    shared = keygen(copy)
    assert "set cluster_name (it is 'starter') in mine/terraform.tfvars" in shared.output
    (copy / "terraform.tfvars").write_text('cluster_name = "mine"\n')
    own = keygen(copy)
    assert "made the owner key" in own.output
    assert "warning" not in own.output
    assert (tmp_path / "config" / "cvm-mesh" / "mine.owner.pem").exists()


def test_a_key_inside_a_checkout_is_refused(cluster: Path, tmp_path: Path) -> None:
    """What is in a checkout gets published."""
    (tmp_path / "project" / ".git").mkdir(parents=True)
    target = tmp_path / "project" / "keys" / "owner.pem"
    found = keygen(cluster, "--key", str(target))
    assert isinstance(found.exception, UserError)
    assert "inside a git checkout" in found.exception.message
    assert not target.exists()


def test_a_compose_file_without_a_place_for_the_key_is_refused(cluster: Path) -> None:
    """The message names the file and what to add."""
    file = cluster / "compose" / "worker.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "MESH_OWNERS" not in line) + "\n")
    found = keygen(cluster)
    assert isinstance(found.exception, UserError)
    assert str(file) in found.exception.message
    assert "add MESH_OWNERS" in found.exception.message


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [("x", 0o600, "holds no private key"), ("x", 0o644, "may be read by others"), (None, 0, "cannot be read")],
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    """Each with its reason."""
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(UserError, match=words):
        manifest_keys.load(path)


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    """Owners sign with Ed25519 or P-256."""
    path = tmp_path / "key"
    others = (ec.generate_private_key(ec.SECP384R1()), x25519.X25519PrivateKey.generate())
    for key, words in zip(others, ("expected P-256", "expected Ed25519 or P-256"), strict=True):
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))  # type: ignore[attr-defined]
        path.chmod(0o600)
        with pytest.raises(UserError, match=words):
            manifest_keys.load(path)


def test_a_p256_key_is_made_when_asked_for(cluster: Path, tmp_path: Path) -> None:
    """The compose files say which kind it is."""
    made = CliRunner().invoke(cli, ["keygen", str(cluster), "--key", str(tmp_path / "k"), "--alg", "p256"])
    assert made.exit_code == 0, made.exception
    text = (cluster / "compose" / "api.yaml").read_text()
    assert 'MESH_OWNERS: "p256:' in text
    assert owners_of(text) == Owners(keys=(key_of(manifest_keys.load(tmp_path / "k")),))


def test_an_owner_beside_others_is_named_by_hand(cluster: Path, tmp_path: Path) -> None:
    """keygen neither takes the others out nor changes what names the key already."""
    keys = [tmp_path / name for name in ("first", "second", "third")]
    publics = []
    for key in keys:
        made = CliRunner().invoke(cli, ["keygen", str(cluster), "--key", str(key), "--no-write"])
        publics.append(made.output.partition("public half: ")[2].splitlines()[0])
        assert made.exit_code == 0
    files = sorted((cluster / "compose").iterdir())
    for file in files:
        file.write_text(file.read_text().replace(OWNER_KEY_PLACEHOLDER, f"2 of {publics[0]}, {publics[1]}"))
    before = [file.read_text() for file in files]
    assert "have it already" in CliRunner().invoke(cli, ["keygen", str(cluster), "--key", str(keys[1])]).output
    refused = CliRunner().invoke(cli, ["keygen", str(cluster), "--key", str(keys[2])])
    assert "names several owners" in str(refused.exception)
    assert [file.read_text() for file in files] == before
