"""An app-compose.json, as measured or as it will be, held against the files here. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshctl.errors import printable
from topology.variables import why_obeyed

_DEMANDED: Mapping[str, tuple[object, object]] = {
    "runner": ("docker-compose", None),
    "kms_enabled": (True, False),
    "local_key_provider_enabled": (False, False),
    "gateway_enabled": (True, False),
    "public_logs": (False, False),
    "public_sysinfo": (False, False),
    "public_tcbinfo": (True, True),
    "no_instance_id": (False, False),
    "secure_time": (True, True),
}
"""Fields of app-compose.json: the value that a mesh needs, and what dstack takes where the field is absent."""
_COMPARED = frozenset({"manifest_version", "name", "docker_compose_file", "allowed_envs", "pre_launch_script"})
_SCRIPTS = ("init_script", "bash_script")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppCompose:
    """One app's, and what the app is to be called and given."""

    app: str
    """The group, or `coordinator`."""
    name: str
    """What the cluster calls the app."""
    environment: tuple[str, ...]
    """Names of the variables that its CVMs are given."""
    tree: Mapping[str, Any]
    verb: str = "measured"

    @property
    def compose_text(self) -> str:
        """The compose file in it."""
        return str(self.tree.get("docker_compose_file"))

    @property
    def script(self) -> str:
        """What runs before the containers; "" for nothing."""
        return str(self.tree.get("pre_launch_script") or "")

    @property
    def _allowed(self) -> set[str]:
        """Names of the variables that the app takes."""
        found = self.tree.get("allowed_envs")
        return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()

    def problems(self, compose_text: str, pre_launch: frozenset[str]) -> Iterator[str]:
        """What the app measured and this mesh does not want."""
        prefix = f"app {self.app!r} {self.verb}"
        tree = self.tree
        if self.compose_text != compose_text:
            line = _first_difference(self.compose_text, compose_text)
            yield f"{prefix} another compose file than the one here (they differ from line {line}); run terraform apply"
        if tree.get("name") != self.name:
            yield f"{prefix} the name {tree.get('name')!r}, expected {self.name!r}"
        missing = sorted(set(self.environment) - self._allowed)
        if missing:
            yield f"{prefix} no place for the variables {', '.join(missing)}; run terraform apply"
        for name in sorted(self._allowed):
            if (obeyed := why_obeyed(name)) is not None:
                yield (
                    f"{prefix} a place for {printable(name):.80}, which {obeyed}, whoever sets it; take it out of "
                    "compose_env, and run terraform apply"
                )
        for field, (wanted, absent) in _DEMANDED.items():
            found = tree.get(field, absent)
            if field == "kms_enabled" and tree.get("key_provider") == "kms":
                continue
            if found != wanted:
                yield f"{prefix} {field} = {json.dumps(found)}, expected {json.dumps(wanted)}"
        for field in _SCRIPTS:
            if tree.get(field):
                yield f"{prefix} a {field}, which runs before the mesh and was not in the files here"
        script, digest = self.script, hashlib.sha256(self.script.encode()).hexdigest()
        if script and digest not in pre_launch:
            yield (
                f"{prefix} a pre-launch script of {len(script.splitlines())} lines that is not of these files: read it "
                f"(./mesh manifest script CLUSTER {self.app}), then accept it with --accept-pre-launch {digest}"
            )

    def notes(self) -> Iterator[str]:
        """What the app measured and nothing here can be compared with."""
        known = {*_DEMANDED, *_COMPARED, *_SCRIPTS, "key_provider", "storage_fs"}
        for field in sorted(set(self.tree) - known):
            shown = json.dumps(self.tree[field])
            told = shown if len(shown) < 120 else f"{shown[:117]}…"
            yield f"app {self.app!r} {self.verb} {printable(field):.80} = {told}"
        more = sorted(self._allowed - set(self.environment))
        if more:
            yield f"app {self.app!r} may be given the variables {', '.join(more)}, which no compose file here uses"
        if self.tree.get("pre_launch_script"):
            yield f"app {self.app!r} runs an accepted pre-launch script"


def _first_difference(one: str, other: str) -> int:
    lines = zip(one.splitlines(), other.splitlines(), strict=False)
    same = next((index for index, (a, b) in enumerate(lines) if a != b), None)
    return 1 + (min(len(one.splitlines()), len(other.splitlines())) if same is None else same)
