"""Where `./mesh generate` learns what runs: in a lab here, or in what Terraform reports. Reads files, asks both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshctl import manifest_keys, owner_access, runs
from meshctl import manifest_sign as signing
from meshctl.errors import UserError

if TYPE_CHECKING:
    from topology.cluster import Cluster
    from topology.envelope import Signed
    from topology.owners import Owners
    from topology.references import OsImage

LAB, PREFLIGHT, OUTPUTS = "lab", "preflight", "outputs"
GENERATED = "generated.json"
"""End of the name of the file beside the manifest that has what was generated last, and from what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the cluster runs, and who signs there."""

    kind: str
    """LAB, PREFLIGHT or OUTPUTS."""
    cluster: Cluster
    report: str
    """The output `deployment`, or the preflight file, JSON."""
    files: Mapping[str, str]
    """Text of each app's compose file, with the owners who sign there."""
    owners: Owners
    head: Signed | None
    """The manifest in force; None before the first."""

    @property
    def mesh(self) -> str:
        """Which mesh is meant, a lab or the deployment; for what is kept beside the manifest."""
        return LAB if self.kind == LAB else OUTPUTS


def beside(target: Path) -> Path:
    """Where is kept what was generated for `target`."""
    return target.with_name(f"{target.name.removesuffix('.json')}.{GENERATED}")


def source_of(target: Path) -> str:
    """From what `target` was generated; OUTPUTS where that is not known. UserError."""
    kept = read_json(beside(target))
    return str(kept["from"]) if isinstance(kept, dict) and kept.get("from") in (LAB, OUTPUTS) else OUTPUTS


def lab_of(folder: Path, name: str | None) -> runs.Run | None:
    """The lab called `name`, or the only one, of the cluster in `folder`; None when none is of it. UserError where
    several are, or `name` is of another one.
    """
    if name is not None:
        run = runs.find(name)
        if _cluster_of(run) != folder:
            raise UserError(f"the lab {name!r} is of {_cluster_of(run)}, not of {folder}", "./mesh list")
        return run
    found = [run for run in runs.all_runs() if run.alive and _cluster_of(run) == folder]
    if len(found) > 1:
        raise UserError(f"several labs of {folder} run: {', '.join(run.name for run in found)}", "--name NAME")
    return found[0] if found else None


def other_labs(folder: Path) -> str:
    """What runs instead of a lab of the cluster in `folder`, as the beginning of a message; "" where nothing does."""
    found = [f"the lab {run.name!r} is of {_cluster_of(run)}" for run in runs.all_runs() if run.alive]
    return f"{'; '.join(found)}, and none runs of {folder}. For a deployment of it " if found else ""


def in_lab(run: runs.Run, folder: Path) -> Site:
    """The site of a lab. UserError."""
    from meshctl.bring_up import checked
    from topology.render import with_owners

    here = owner_access.lab(run.name)
    owners = here.owners
    cluster = checked(folder, _request(run).get("overrides", {}))
    return Site(
        kind=LAB,
        cluster=cluster,
        report=json.dumps(run.call("GET", "/deployment")),
        files={name: with_owners(text, owners) for name, text in _texts(cluster).items()},
        owners=owners,
        head=here.head(),
    )


def deployed(cluster: Cluster, outputs: Path | None) -> Site:
    """The site of what Terraform deployed. UserError."""
    before = signing.head(cluster)
    return Site(
        kind=OUTPUTS,
        cluster=cluster,
        report=terraform_output(cluster.folder, outputs),
        files=_texts(cluster),
        owners=signing.next_owners(cluster, before),
        head=before,
    )


def foreseen(cluster: Cluster, preflight: Path) -> Site:
    """The site of what is deployed, with the revisions of the file `preflight` to come. UserError."""
    before = signing.head(cluster)
    if before is None:
        raise UserError(
            f"{cluster.folder} has no {signing.SIGNED} yet, and a preflight is for the next revision of what runs",
            f"./mesh generate {cluster.folder} --from {OUTPUTS}",
        )
    try:
        text = preflight.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{preflight} cannot be read: {error}", "docs/deploying.md has its form") from error
    owners = signing.next_owners(cluster, before)
    return Site(kind=PREFLIGHT, cluster=cluster, report=text, files=_texts(cluster), owners=owners, head=before)


def terraform_output(folder: Path, outputs: Path | None) -> str:
    """The output `deployment`: out of the file `outputs` (`-`: standard input), or from Terraform. UserError."""
    if outputs is not None:
        try:
            return sys.stdin.read() if str(outputs) == "-" else outputs.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{outputs} cannot be read: {error}", "terraform output -json deployment > outputs.json"
            ) from error
    terraform = shutil.which("terraform")
    if terraform is None:
        raise UserError(
            "terraform is not on PATH, so it cannot be asked", "--outputs FILE, or install Terraform 1.5 or newer"
        )
    argv = [terraform, f"-chdir={folder}", "output", "-json", "-no-color", "deployment"]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(
            f"terraform has no output `deployment` in {folder}:\n{result.stderr.strip()}", "terraform apply first"
        )
    return result.stdout


def os_images(path: Path) -> tuple[OsImage, ...]:
    """The approved images that `path` lists. UserError."""
    from topology.references import OsImage
    from topology.trees import ManifestError, from_tree

    try:
        found: Any = from_tree(tuple[OsImage, ...], json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, ManifestError) as error:
        form = '[{"os_image_hash": "…", "mrtd": "…", "rtmr0": "…", "rtmr1": "…", "rtmr2": "…"}]'
        raise UserError(f"{path} is no list of OS images: {error}", form) from error
    if not found:
        raise UserError(f"{path} approves no OS image", "list at least one")
    return tuple(found)


def read_json(path: Path) -> Any:
    """What is in `path`; ABSENT when it is not there. UserError."""
    from runtime.jsons import once
    from topology.merge import ABSENT

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        return ABSENT
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "mend it, or remove it") from error


def _texts(cluster: Cluster) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in manifest_keys.compose_files(cluster).items()}


def _request(run: runs.Run) -> dict[str, Any]:
    """What the lab was asked for when it began."""
    found = read_json(run.folder / "request.json")
    return found if isinstance(found, dict) else {}


def _cluster_of(run: runs.Run) -> Path | None:
    cluster = _request(run).get("cluster")
    return Path(cluster) if isinstance(cluster, str) else None
