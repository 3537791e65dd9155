"""The router's decisions: prefix tree, policy, leases. Pure: no I/O, no clock, no global state."""
