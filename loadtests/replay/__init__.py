"""Trace-driven load against an OpenAI-compatible server: what `warmroute replay` is made of."""
