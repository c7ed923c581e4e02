"""What `./mesh verify` keeps: the folder with what was proven, and what this machine has seen enforced, which `./mesh
set` and `evict` keep, too. IO: files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import locks, writing
from meshctl.documents import FOLDER
from meshctl.errors import UserError

if TYPE_CHECKING:
    from evidence.outside import Seen, Verified

BUNDLE = "bundle.json"
"""Also the mark by which a folder is known to be ours, and may be replaced."""
MAX_SEEN = 1 << 16
"""Bytes."""
SEEN_IN_LAB = "seen.json"
"""In the folder of a lab: what was seen enforced in it, which ends with the lab."""

MAX_LABS = 64
"""Verified bundles of labs that are remembered, the newest: a lab is verified some times and then gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabAnchors:
    """By what this machine verified a bundle of a lab."""

    owners: str
    """As in MESH_OWNERS."""
    development_root: str
    """DER, hex."""


def check_target(folder: Path) -> None:
    """UserError when `folder` must not be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is no folder", "--out another-folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / BUNDLE).is_file():
        raise UserError(f"{folder} was not made by ./mesh verify: it has no {BUNDLE}", "--out another-folder")


def write(folder: Path, found: Verified, bundle: bytes) -> None:
    """Makes `folder` what was proven, as a whole: it is made beside it and then renamed. UserError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}", "--out another-folder") from error
    before = made.with_name(f"{made.name}-before")
    try:
        for name, data in contents(found, bundle).items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_bytes(data)
        made.chmod(0o755)
        put_in_place(made, folder, before)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}", "--out another-folder") from error
    finally:
        for left in (made, before):
            shutil.rmtree(left, ignore_errors=True)


def put_in_place(made: Path, folder: Path, before: Path, rename: Callable[[Path, Path], object] = Path.rename) -> None:
    """Makes `made` the `folder`, and `before` what that was. Whatever ends it in between, Ctrl-C as well, `folder` is
    there afterwards if it was there before. OSError.
    """
    try:
        if folder.exists():
            rename(folder, before)
        rename(made, folder)
    finally:
        if before.exists() and not folder.exists():
            before.rename(folder)


def contents(found: Verified, bundle: bytes) -> dict[str, bytes]:
    """The files of the folder by name."""
    epoch = found.statement.head.epoch
    mesh_ca = _pem(found.mesh_ca)
    return {
        BUNDLE: bundle,
        "root-ca.pem": _pem(found.root_ca),
        "mesh-ca.pem": mesh_ca,
        f"mesh-ca.{epoch}.pem": mesh_ca,
        "members.json": _pretty([asdict(member) for member in found.members]),
        **{f"{FOLDER}/{name}.json": text.encode() for name, text in found.documents.items()},
        **{
            f"history/{each.manifest.epoch}-{each.digest}.{kind}": data
            for each in found.history
            for kind, data in (("signed", f"{each.envelope}\n".encode()), ("json", _readable(each.envelope)))
        },
    }


def seen_path(cluster: str, app_id: str) -> Path:
    """Where this machine remembers what it saw of a cluster. Another coordinators' app is another mesh."""
    from topology.names import why_no_label

    # Both come out of a manifest, and nobody's words become a path.
    name = cluster if why_no_label(cluster) is None else "mesh"
    digest = hashlib.sha256(f"{cluster}\0{app_id}".encode("utf-8", "replace")).hexdigest()
    return _memory() / "seen" / f"{name}-{digest[:16]}.json"


def read_seen(path: Path) -> Seen | None:
    """What is remembered there; None when nothing is. UserError when it cannot be read: that is no reason to forget."""
    from evidence.outside import Seen
    from topology.trees import ManifestError, from_tree

    try:
        with path.open("rb") as file:
            seen: Seen = from_tree(Seen, json.loads(file.read(MAX_SEEN)), "seen")
    except FileNotFoundError:
        return None
    except (OSError, ManifestError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, which says what this machine has seen enforced, cannot be read: {error}",
            "mend it; or remove it, and what was seen is forgotten",
        ) from error
    return seen


def write_seen(path: Path, seen: Seen) -> None:
    """Remembers `seen`, unless another process has seen a newer manifest meanwhile. UserError; UnprovenError (ROLLBACK)
    where that one has seen another manifest of the same epoch, or another root CA: two are shown as in force. The root
    CA that is known stays known, for it outlives manifests.
    """
    from evidence.outside import Cause, UnprovenError
    from topology.envelope import SHOWN_DIGITS

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locks.exclusive(path.with_suffix(".lock"), lambda _: None):
            before = read_seen(path)
            if before is not None and before.contradicts(seen):
                raise UnprovenError(
                    Cause.ROLLBACK,
                    f"epoch {seen.epoch} with digest {seen.digest:.{SHOWN_DIGITS}} and root CA "
                    f"{seen.root_sha256:.{SHOWN_DIGITS}} was shown, and meanwhile this machine has seen it with digest "
                    f"{before.digest:.{SHOWN_DIGITS}} and root CA {before.root_sha256:.{SHOWN_DIGITS}}",
                )
            if before is not None:
                seen = replace(seen, root_sha256=seen.root_sha256 or before.root_sha256)
            if before is None or (before.epoch <= seen.epoch and before != seen):
                writing.write(path, _pretty(asdict(seen)))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "make room, or mend its rights") from error


def read_lab(bundle: bytes) -> LabAnchors | None:
    """By what this machine verified that very bundle in a lab; None where it did not. UserError.

    It lies in the person's own configuration and not beside the bundle: whoever hands a bundle on could put any root
    there.
    """
    from topology.trees import ManifestError, from_tree

    path = _lab_path(bundle)
    try:
        with path.open("rb") as file:
            found: LabAnchors = from_tree(LabAnchors, json.loads(file.read(MAX_SEEN)), "lab")
        bytes.fromhex(found.development_root)
    except FileNotFoundError:
        return None
    except (OSError, ManifestError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, by which a lab's bundle was verified, cannot be read: {error}",
            "remove it, and give -m and --insecure-root",
        ) from error
    return found


def write_lab(bundle: bytes, anchors: LabAnchors) -> None:
    """Remembers `anchors` for that bundle, and forgets the oldest ones. Where that fails it says what is needed later:
    what was verified holds all the same.
    """
    path = _lab_path(bundle)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        writing.write(path, _pretty(asdict(anchors)))
        known = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        for old in known[:-MAX_LABS]:
            old.unlink(missing_ok=True)
    except (OSError, UserError) as error:
        click.echo(f"not remembered in {path.parent} ({error}): --offline will need -m and --insecure-root", err=True)


def _lab_path(bundle: bytes) -> Path:
    return _memory() / "labs" / f"{hashlib.sha256(bundle).hexdigest()}.json"


def _memory() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "cvm-mesh"


def _readable(envelope: str) -> bytes:
    from topology.envelope import message_of

    _, _, payload = message_of(envelope).partition(b"\0")
    return _pretty(json.loads(payload))


def _pretty(tree: object) -> bytes:
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode()


def _pem(der: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
