"""Virtual addresses on loopback: what to add and remove (`plan`), and the netlink that does it (`netlink`);
where connections are reset (`resets`), and the netlink that does it (`nftables`)."""
