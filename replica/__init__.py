"""A lean continuous-batching engine with an OpenAI-compatible API and a reported KV cache."""
