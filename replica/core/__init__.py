"""The replica's decisions: scheduler, block pool, prefix cache, sequences. Pure."""
