"""Round numbers for how fast a replica is."""

from router.core.cost import Rates


def round_rates() -> Rates:
    """A millisecond a token, and nothing for what it looks at."""
    return Rates(
        prefill_s_per_token=1e-3,
        prefill_s_per_pair=0.0,
        overhead_s=0.01,
        decode_base_s=0.02,
        decode_slope_s=0.0005,
    )
