"""Routers side by side: each in front of the same simulated replicas, under the same load."""
