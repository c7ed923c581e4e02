"""Virtual addresses on loopback: what to add and remove (`plan`), and the netlink that does it (`netlink`)."""
