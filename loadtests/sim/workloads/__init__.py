"""Seeded workloads for the simulator: each named for what a fleet sees, or for what traps routers.

Start at `registry.WORKLOADS` (by name) or build one, and hand it to `generate`:

    generate(Chat(turns=6), seed=1, requests_per_s=20, count=10_000)

A workload is made of sessions (a conversation, an agent's task, a burst), which come as a Poisson
process and hold one turn or many. Prompts are put together from contents, ranges of token ids that
no other content has: equal tokens are always the same content, so prefixes are equal exactly where
a workload says so. Lengths are log-normal; their medians come from what is published about such
traffic, the source beside each, and from no trace that routers are measured with here.
"""
