"""The router: an async reverse proxy that sends each request where its prefix is in cache."""
