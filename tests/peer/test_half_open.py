from __future__ import annotations

import sys

import pytest

from peer.half_open import Connection, established, segment

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"


def row(local: str, remote: str, state: str) -> str:
    """A row of /proc/net/tcp."""
    return f"   0: {local} {remote} {state} 00000000:00000000 02:0000044A 00000000     0        0 99 2 0 20 4 30 10 -1"


@pytest.mark.skipif(sys.byteorder != "little", reason="rows as a little-endian machine prints them")
def test_open_connections_to_the_wanted_peers_are_found() -> None:
    """Those of other peers, listening ones and closed ones are not."""
    rows = [
        HEAD,
        row("0A006064:C350", "09006064:206C", "01"),
        row("0A006064:C351", "09006064:206C", "08"),
        row("0A006064:C352", "08006064:206C", "01"),
        row("0A006064:C353", "09006064:206C", "06"),
        row("00000000:206C", "00000000:0000", "0A"),
        "   1: zz:zz 09006064:206C 01",
        "",
    ]
    assert established(rows, frozenset({"100.96.0.9"})) == [
        Connection("100.96.0.10", 50000, "100.96.0.9", 8300),
        Connection("100.96.0.10", 50001, "100.96.0.9", 8300),
    ]


def test_segment_is_empty_and_seems_to_come_from_the_other_end() -> None:
    """An acknowledgement without data; the checksum over pseudo header and segment is right."""
    packet = segment(Connection("100.96.0.10", 50000, "100.96.0.9", 8300))
    assert len(packet) == 40
    assert (packet[12:16], packet[16:20]) == (bytes([100, 96, 0, 9]), bytes([100, 96, 0, 10]))
    assert packet[20:24] == (8300).to_bytes(2, "big") + (50000).to_bytes(2, "big")
    assert packet[33] == 0x10
    words = packet[12:20] + bytes([0, 6, 0, 20]) + packet[20:]
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
