"""How long one CVM's evidence takes, step by step: `python benchmarks/evidence_bench.py`. One core, no network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from evidence.collateral import FixedCollateral
from evidence.eventlog import parse
from evidence.verify import Verifier
from lab.agent_tls import event_log_json
from lab.tee import DevTee, make_cvm

ROUNDS = 300
NOW = 1_800_000_000.0


async def measure(name: str, step: Callable[[], Awaitable[object]]) -> None:
    """Prints median and 99th percentile of `step` in milliseconds."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await step()
        taken.append((time.perf_counter() - start) * 1000)
    taken.sort()
    print(f"{name:32} p50 {taken[ROUNDS // 2]:6.3f} ms   p99 {taken[ROUNDS * 99 // 100]:6.3f} ms")


async def main() -> None:
    """Quote, log and whole verification."""
    tee = DevTee(b"benchmark")
    cvm = make_cvm(tee, app_compose='{"name":"api"}', app_id=None, instance_seed=b"", os_version="0.6.0")
    quote = tee.quote(cvm.measurements, b"x")
    log = event_log_json(cvm.boot_events, stripped=True)
    source = FixedCollateral(tee.collateral_json(NOW))
    verifier = Verifier(collateral=source, root_ca_der=tee.root_der)

    async def sign() -> object:
        return tee.quote(cvm.measurements, b"x")

    async def replay() -> object:
        return parse(log).replay()

    async def verify() -> object:
        return await verifier.verify(quote=quote, event_log=log, vm_config=cvm.vm_config, report_data=b"x", now=NOW)

    await measure("make a quote (simulated TEE)", sign)
    await measure(f"parse and replay {len(cvm.boot_events)} events", replay)
    await measure("verify everything", verify)


asyncio.run(main())
