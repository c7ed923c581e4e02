"""A PCCS for the development PKI: the four requests of Intel's provisioning certificate caching service, version 4."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from urllib.parse import quote as url_quote

from aiohttp import web

from .tee import DevTee
from .tee_pki import FMSPC


class PccsServer:
    """Serves `tee`'s collateral over plain HTTP."""

    def __init__(self, tee: DevTee, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives the Unix time that the collateral is made for."""
        self._tee = tee
        self._clock = clock
        self._runner: web.AppRunner | None = None

    async def start(self, sock: socket.socket) -> None:
        """Serves on a listening socket of the caller's, who may have bound it in another network namespace."""
        app = web.Application()
        for version in ("v3", "v4"):
            app.router.add_get(f"/sgx/certification/{version}/pckcrl", self._pck_crl)
            app.router.add_get(f"/sgx/certification/{version}/rootcacrl", self._root_crl)
            app.router.add_get(f"/tdx/certification/{version}/tcb", self._tcb)
            app.router.add_get(f"/tdx/certification/{version}/qe/identity", self._qe_identity)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Closes the socket and ends what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _parts(self) -> dict[str, str]:
        return self._tee.collateral(self._clock())

    async def _pck_crl(self, request: web.Request) -> web.Response:
        if request.query.get("ca") != "platform":
            return web.Response(status=404, text="no such CA")
        parts = self._parts()
        der = bytes.fromhex(parts["pck_crl"])
        wants_der = request.query.get("encoding") == "der"
        return web.Response(
            body=der if wants_der else der.hex().encode(),
            content_type="application/pkix-crl",
            headers={"SGX-PCK-CRL-Issuer-Chain": url_quote(parts["pck_crl_issuer_chain"])},
        )

    async def _root_crl(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._parts()["root_ca_crl"], content_type="application/pkix-crl")

    async def _tcb(self, request: web.Request) -> web.Response:
        if request.query.get("fmspc", "").lower() != FMSPC.hex():
            return web.Response(status=404, text="no such platform")
        return self._signed("tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain")

    async def _qe_identity(self, _request: web.Request) -> web.Response:
        return self._signed("enclaveIdentity", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain")

    def _signed(self, member: str, part: str, header: str) -> web.Response:
        parts = self._parts()
        # Put together as text: the signature covers the inner object's exact bytes.
        text = f'{{"{member}":{parts[part]},"signature":"{parts[f"{part}_signature"]}"}}'
        chain = url_quote(parts[f"{part}_issuer_chain"])
        return web.Response(text=text, content_type="application/json", headers={header: chain})
