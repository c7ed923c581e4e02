"""What `./mesh demo trust` shows at its end."""

from __future__ import annotations

from pathlib import Path

from meshctl.trust_report import WIDTH, Finding, next_steps, summary

FINDINGS = [
    Finding(what="new mesh CA in every CVM", found="0.71 s", aim="< 2 s"),
    Finding(what="new mesh CA in every other CVM", found="12.34 s", aim="< 2 s", met=False),
    Finding(what="a connection that was cut although nobody wanted that to be done, ever", found="1", aim="0",
            met=False, fatal=True),
]  # fmt: skip


def test_the_table_fits_into_eighty_columns() -> None:
    """What missed its aim, and what must not be, are told apart."""
    lines = summary(FINDINGS)
    assert max(map(len, lines)) <= WIDTH
    assert [line.endswith("missed") for line in lines[-2:]] == [True, False]
    assert lines[-1].endswith("FAILED")
    assert all(
        len(line) <= WIDTH for line in next_steps("trust", Path("/tmp/cvm-mesh-trust-abcdefgh/starter")).splitlines()
    )
