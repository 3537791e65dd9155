"""The load a replica reports about itself: what waits, what runs, how full its KV cache is.

On the wire it is SGLang's LoadStat message: a msgpack array
`["LoadStat", running, waiting, tokens, max_total_tokens, attn_dp_rank, waiting_uncached_tokens]`
sent on a PUB socket (sglang, `--load-publish-endpoint`).
"""

import msgspec


class LoadReport(msgspec.Struct, frozen=True, array_like=True, tag="LoadStat"):
    """One report. Counts are of sequences or tokens at the moment it was made."""

    running: int
    waiting: int
    tokens: int
    max_total_tokens: int
    data_parallel_rank: int | None = None
    waiting_uncached_tokens: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LoadReport)


def encode_load_report(report: LoadReport) -> bytes:
    return _encoder.encode(report)


def decode_load_report(payload: bytes) -> LoadReport:
    """Raises msgspec.DecodeError when `payload` is not a load report."""
    return _decoder.decode(payload)
