"""The hot path: HTTP/1.1 as raw asyncio protocols, bytes relayed as they come."""
