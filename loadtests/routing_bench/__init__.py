"""Routing policies against each other over workloads, loads, cache sizes and fleets."""
