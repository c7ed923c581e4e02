from __future__ import annotations

import subprocess
import sys

from sidecar.memory import clean_ranges
from tests.support import ROOT

SMAPS = """\
55d000000000-55d000001000 r-xp 00000000 fe:00 11 /usr/bin/python3
Rss:                   4 kB
Private_Dirty:         0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
55d000001000-55d000002000 r--p 00001000 fe:00 12 /lib/relro.so
Private_Dirty:         4 kB
Swap:                  0 kB
55d000002000-55d000003000 r--p 00001000 fe:00 12 /lib/swapped.so
Private_Dirty:         0 kB
Swap:                  4 kB
55d000003000-55d000004000 rw-p 00000000 fe:00 13 /lib/data.so
Private_Dirty:         0 kB
Swap:                  0 kB
55d000004000-55d000005000 r-xp 00000000 00:00 0 [vdso]
Private_Dirty:         0 kB
Swap:                  0 kB
55d000005000-55d000006000 r--p 00000000 fe:00 14 /usr/lib/locale/C.utf8/LC_CTYPE
Private_Dirty:         0 kB
Swap:                  0 kB
"""


def test_only_clean_read_only_file_mappings_are_dropped() -> None:
    """Program text and tables go; relocated, swapped, writable and anonymous mappings stay."""
    assert clean_ranges(SMAPS) == [(0x55D000000000, 0x55D000001000), (0x55D000005000, 0x55D000006000)]


def test_a_settled_process_works_on_and_is_smaller() -> None:
    """After settle() the same code runs, in less memory, with the collector on."""
    code = (
        "import gc; from sidecar import memory; memory.begin(); assert not gc.isenabled()\n"
        "import asyncio, ssl, json, grpc.aio, cryptography.x509\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "before = rss(); memory.settle(); after = rss()\n"
        "asyncio.run(asyncio.sleep(0)); ssl.create_default_context(); json.dumps({'a': 1})\n"
        "print(gc.isenabled(), after < before)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["True", "True"], result.stderr
