"""The app-compose texts of the manifest in force, in Consul's KV, for whoever verifies the mesh. IO: Consul's API.

Anybody may bring one, for it counts by its hash alone; and only texts that the manifest names are kept, so the
manifest bounds how much there is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

from admission.protocol import DOCUMENTS_PREFIX, Code
from coordinator.refusal import RefusalError
from evidence.documents import DocumentError, check, named
from runtime.consul import ConsulClient
from topology.manifest import Manifest


class Documents:
    """Those behind `client`."""

    def __init__(self, client: ConsulClient) -> None:
        self._client = client
        self._texts: dict[str, str] = {}
        self._writing = asyncio.Lock()

    def of(self, manifest: Manifest) -> dict[str, str]:
        """The texts that are known of the compose hashes that `manifest` names, by hash."""
        return {name: self._texts[name] for name in sorted(named(manifest)) if name in self._texts}

    def take(self, _: int, entries: Any) -> None:
        """Takes what the KV has. What is not what its name says does not count."""
        found: dict[str, str] = {}
        for entry in entries or ():
            name = str(entry["Key"]).removeprefix(DOCUMENTS_PREFIX)
            try:
                text = base64.b64decode(entry["Value"] or "").decode()
                check({name: text}, (name,))
            except (DocumentError, binascii.Error, UnicodeDecodeError):
                continue
            found[name] = text
        self._texts = found

    async def keep(self, documents: Mapping[str, str], manifest: Manifest) -> None:
        """Keeps those of `documents` (judged before) that `manifest`, which is in force, names. ConsulError."""
        wanted = named(manifest)
        async with self._writing:
            for name, text in documents.items():
                if name in wanted and name not in self._texts:
                    await self._client.put(f"/v1/kv/{DOCUMENTS_PREFIX}{name}", text.encode(), params={"cas": "0"})
                    self._texts[name] = text

    async def forget(self, manifest: Manifest) -> None:
        """Removes the texts of hashes that the manifest in force does not name any more. ConsulError."""
        wanted = named(manifest)
        for name in [name for name in self._texts if name not in wanted]:
            await self._client.delete(f"/v1/kv/{DOCUMENTS_PREFIX}{name}")


def judge(documents: Mapping[str, str], manifest: Manifest) -> None:
    """RefusalError unless `documents` are texts of compose hashes that `manifest` names."""
    try:
        check(documents, named(manifest))
    except DocumentError as error:
        raise RefusalError(Code.MANIFEST_REFUSED, f"documents: {error}") from error
