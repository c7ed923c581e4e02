"""Virtual addresses on loopback: what to add and remove (`plan`), and the netlink that does it (`netlink`);
which of them refuse connections (`refusals`), and the netlink that does it (`nftables`)."""
