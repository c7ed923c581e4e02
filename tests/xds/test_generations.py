"""Real Envoys with the mesh's own certificates: who is let in while a new authority takes over, and afterwards."""

from __future__ import annotations

import time
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from coordinator.authority import MeshCa, issue, mesh_ca, root
from coordinator.keys import derive
from runtime.secret import Secret
from tests.xds.mesh import CALLEE, CALLER, Pair, pair
from tests.xds.test_transport import held, says
from xds.spec import Leaf

KEYS = derive(Secret("ab" * 32), "test")
OLD, NEW = mesh_ca(KEYS, 1, "aa" * 32), mesh_ca(KEYS, 2, "bb" * 32)
ROOT_PEM = root(KEYS).public_bytes(Encoding.PEM).decode()


class Side:
    """What one CVM shows and trusts."""

    def __init__(self, group: str, uri: str) -> None:
        self._group, self._uri = group, uri
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.shows, self.trusts = OLD, OLD.pem

    def leaf(self) -> Leaf:
        """The certificate that it shows."""
        spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        chain = issue(self.shows, spki, group=self._group, peer_id=f"{self._group}-0", hours=8, now=time.time())
        private = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return Leaf(name=self._group, uri=self._uri, chain_pem=chain, key_pem=Secret(private))


class Mesh:
    """A caller and a callee."""

    def __init__(self, both: Pair) -> None:
        self.both = both
        self.caller, self.callee = Side("caller", CALLER), Side("callee", CALLEE)

    async def apply(self) -> None:
        """Gives both Envoys what they are to show and trust."""
        self.both.callee_leaf, self.both.caller_leaf = self.callee.leaf(), self.caller.leaf()
        await self.both.callee.apply(replace(self.both.ingress(), roots_pem=self.callee.trusts))
        await self.both.caller.apply(replace(self.both.egress(), roots_pem=self.caller.trusts))

    async def answers(self) -> bool:
        """Whether each of some new connections is let in."""
        return all([await self.both.ask() == b"ping" for _ in range(8)])


async def test_a_new_authority_takes_over_without_a_refused_connection() -> None:
    """In the order that the sidecars keep: both trust the new one, then each shows its new certificate, then the old
    one is forgotten. New connections are let in at each step, held ones go on.
    """
    async with pair() as both:
        mesh = Mesh(both)
        await mesh.apply()
        assert await mesh.answers()
        async with held(both) as streams:
            for step in ("callee trusts", "caller trusts", "callee shows", "caller shows", "nobody trusts the old one"):
                if "trusts" in step.split():
                    sides = {"callee": (mesh.callee,), "caller": (mesh.caller,)}
                    for side in sides.get(step.split()[0], (mesh.callee, mesh.caller)):
                        side.trusts = NEW.pem if step.startswith("nobody") else NEW.pem + OLD.pem
                else:
                    side = mesh.callee if step.startswith("callee") else mesh.caller
                    side.shows = NEW
                await mesh.apply()
                assert await mesh.answers(), step
            assert all([await says(stream) for stream in streams])


async def refused(shown: MeshCa, trusted: str) -> None:
    """Expects that a caller which shows `shown` is not let in by a callee that trusts `trusted`."""
    async with pair() as both:
        mesh = Mesh(both)
        mesh.callee.shows = mesh.caller.shows = shown
        mesh.callee.trusts = mesh.caller.trusts = shown.pem
        await mesh.apply()
        assert await mesh.answers()
        mesh.callee.trusts = trusted
        await mesh.apply()
        await both.settles_on(b"")
        await both.callee.counted("listener.*ssl.fail_verify_error")


async def test_a_certificate_of_the_manifest_before_is_worth_nothing() -> None:
    """An evicted CVM, or whoever has its key, is refused in the handshake once the window is over: also though the
    chain that it shows leads to the root, and though a session of before could be resumed.
    """
    await refused(OLD, NEW.pem)


async def test_another_clusters_certificate_is_refused() -> None:
    """The same group's name does not help."""
    other = mesh_ca(derive(Secret("cd" * 32), "test"), 2, NEW.digest)
    await refused(other, NEW.pem)


async def test_who_trusts_the_root_takes_every_generation() -> None:
    """The mesh CA that comes with the leaf leads there, in Envoy's library as in others."""
    async with pair() as both:
        mesh = Mesh(both)
        mesh.callee.trusts = mesh.caller.trusts = ROOT_PEM
        for shown in (OLD, NEW):
            mesh.callee.shows = mesh.caller.shows = shown
            await mesh.apply()
            assert await mesh.answers()
