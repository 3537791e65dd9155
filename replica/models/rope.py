"""The table of rotary angles of every position of a model's context."""

import math

import torch

from replica.models.config import Llama3Scaling, RopeConfig
from replica.models.errors import UnsupportedModel


def rope_table(
    config: RopeConfig, head_dim: int, positions: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosine, sine), each [positions, head_dim / 2] fp32.

    Raises:
        UnsupportedModel: the file's frequency divisors do not fit head_dim.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / config.theta**exponents
    if config.scaling is not None:
        frequencies = _slow_down(frequencies, config.scaling)
    if config.divisors is not None:
        if len(config.divisors) != head_dim // 2:
            raise UnsupportedModel(
                f"{len(config.divisors)} rope frequency divisors for head_dim {head_dim}"
            )
        frequencies = frequencies / torch.tensor(config.divisors, device=device)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), angles.sin()


def _slow_down(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context / wavelengths
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies
