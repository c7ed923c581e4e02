"""What a plan refuses of ingress modes and public listeners: by file, line and entry. All cases are in `cases`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.cases import BROKEN
from tests.topology.support import problems

ENTRY = "workload_groups.a.backends.a"


@pytest.mark.parametrize(
    ("case", "entry", "said"),
    [
        ("public-twice", f"{ENTRY}.public.port", "is 443, as that of backend 'x' in the same CVM"),
        ("public-shared-0", f"{ENTRY}.public.sans", "holds 'web', and group 'b' has 'web'; a name is one group's"),
        ("public-shared-1", f"{ENTRY}.public.sans", "holds 'https://web/a', and group 'b' has 'web'"),
        ("public-shared-2", f"{ENTRY}.public.sans", "holds 'x.b.example', and group 'b' has '*.b.example'"),
        ("public-gateway-port", f"{ENTRY}.public.sans", "not the one of this listener, <app ID>-443s.<gateway>"),
        ("public-without-tls", f"{ENTRY}.public", 'is given, but ingress is "mtls"'),
        ("tls-without-public", f"{ENTRY}.ingress", "there is no public listener; add public = { port = 443"),
        ("ingress-unknown", f"{ENTRY}.ingress", 'is \'mtl\', expected "mtls", "tls" or "off"'),
        ("off-with-a-route", "workload_groups.a.routes.a.backend", 'whose ingress is "off"'),
        ("off-with-callers", f"{ENTRY}.callers", "nobody calls what only its own CVM reaches"),
        ("public-9", f"{ENTRY}.public.sans", "holds 'web' more than once"),
        ("public-10", f"{ENTRY}.public.sans", "holds 'a_b.example'; expected a DNS name"),
        ("public-23", f"{ENTRY}.public.port", "is 8787, which the admission broker uses"),
        ("public-26", f"{ENTRY}.public.port", "is 53, where the mesh answers for names"),
        ("public-27", f"{ENTRY}.public.address", "on every IPv4 address of the CVM"),
        ("public-28", f"{ENTRY}.public.listen", "on IPv6 (`::`) nobody could be led there"),
        ("public-25", f"{ENTRY}.public.port", "is 28080, the sidecar port of backend 'a'"),
    ],
)
def test_the_first_problem_names_the_entry_and_what_to_do(tmp_path: Path, case: str, entry: str, said: str) -> None:
    """With the line of the entry itself, or of the nearest one around it that is written."""
    BROKEN[case](tmp_path)
    first = problems(tmp_path)[0]
    assert f"{entry}: " in first or f"{entry} " in first, first
    assert said in first
    assert first.startswith(f"{tmp_path}/cluster.tf:"), first
