"""Everything beside the hot path: admin port, probes, KV-event subscriptions."""
