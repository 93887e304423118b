"""Rotary frequencies by their definition."""

from __future__ import annotations

import math
from typing import Any

import torch


def rope_frequencies(head_dim: int, rope: dict[str, Any]) -> torch.Tensor:
    """Radians per position, float64 [head_dim / 2].

    "linear" divides positions; "llama3" (Meta's reference code) slows long waves by `factor`, keeps short ones, and
    interpolates between.
    """
    plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    assert rope["rope_type"] == "llama3"
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (keep + (1 - keep) / rope["factor"])
