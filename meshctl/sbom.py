"""What is in an image, as a CycloneDX document: Debian's packages, Python's, and other programs with their SHA-256.

The image itself is asked: the list is of what is there, not of what was asked for. Equal images give equal documents.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Mapping, Sequence

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL

from meshctl import tools
from meshctl.engine import Engine
from meshctl.errors import UserError
from meshctl.images import Image
from meshctl.info import project_version

_ASK = r"""
import hashlib, importlib.metadata as m, json, os, subprocess, sys
query = ["dpkg-query", "-W", "-f", "${Package} ${Version} ${Architecture}\n"]
debian = subprocess.run(query, capture_output=True, text=True, check=True)
folders = [path for path in sys.path if path.startswith("/opt/")]
python = sorted({(d.metadata["Name"], d.version) for d in m.distributions(path=folders)})
place = "/usr/local/bin"
paths = [os.path.join(place, name) for name in sorted(os.listdir(place))]
programs = [
    (os.path.basename(path), hashlib.sha256(open(path, "rb").read()).hexdigest())
    for path in paths if not os.path.islink(path)
]
debian = [line.split() for line in debian.stdout.splitlines()]
print(json.dumps({"debian": debian, "python": python, "programs": programs}))
"""


def ask(engine: Engine, image: Image) -> dict[str, list[list[str]]]:
    """What the image says of itself: Debian (name, version, architecture), Python (name, version), and the programs in
    /usr/local/bin (name, SHA-256).
    """
    options = ("--rm", "--network", "none", "--entrypoint", "python3", image.local)
    done = engine.run("run", *options, "-c", _ASK)
    found: dict[str, list[list[str]]] = json.loads(done.stdout)
    return found


def document(image: Image, digest: str, found: dict[str, list[list[str]]], moment: int) -> str:
    """The CycloneDX document of an image with that `digest` (its ID); `moment` is the time it is dated to."""
    own = Component(
        name=f"cvm-mesh-{image.name}",
        version=project_version(),
        type=ComponentType.CONTAINER,
        bom_ref=f"image:{digest}",
        purl=PackageURL("oci", None, f"cvm-mesh-{image.name}", digest),
    )
    components = [
        *(_debian(*row) for row in found["debian"]),
        *(_python(*row) for row in found["python"]),
        *_programs(image.tools, dict(found["programs"])),
    ]
    bom = Bom(
        components=components,
        metadata=BomMetaData(component=own, timestamp=dt.datetime.fromtimestamp(moment, dt.UTC)),
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, digest),
    )
    bom.register_dependency(own, components)
    return JsonV1Dot5(bom).output_as_string(indent=2)


def _debian(name: str, version: str, architecture: str) -> Component:
    purl = PackageURL("deb", "debian", name, version, {"arch": architecture})
    return Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=str(purl), purl=purl)


def _python(name: str, version: str) -> Component:
    purl = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=str(purl), purl=purl)


def _programs(names: Sequence[str], digests: Mapping[str, str]) -> list[Component]:
    """Programs that no package manager of the image knows; Envoy comes out of a Python package."""
    found = []
    for tool in (tools.TOOLS[name] for name in (*names, *(("envoy",) if names else ()))):
        module = (tool.go_package or "envoyproxy/envoy").rpartition("/")
        purl = PackageURL("golang" if tool.go_package else "github", module[0], module[2], f"v{tool.version}")
        component = Component(
            name=tool.name,
            version=tool.version,
            type=ComponentType.APPLICATION,
            bom_ref=str(purl),
            purl=purl,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digests[tool.name])],
        )
        found.append(component)
    return found


def of_image(engine: Engine, image: Image, moment: int) -> str:
    """The document of an image in the engine. UserError when it was not built."""
    if not engine.has_image(image.local):
        raise UserError(f"the engine has no image {image.local}", f"./mesh images build {image.name}")
    digest = engine.run("image", "inspect", "--format", "{{.Id}}", image.local).stdout.strip()
    return document(image, digest, ask(engine, image), moment)
