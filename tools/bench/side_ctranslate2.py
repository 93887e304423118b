"""CTranslate2 on the processor."""

from __future__ import annotations

import ctranslate2
import numpy as np
from numpy.typing import NDArray
from side import Floats, Side, pooled


class CTranslate2(Side):
    """A converted encoder."""

    def __init__(self, path: str, threads: int, compute_type: str = "int8") -> None:
        self.version = ctranslate2.__version__
        self.encoder = ctranslate2.Encoder(path, intra_threads=threads, compute_type=compute_type)

    def encode(self, tokens: NDArray[np.int32]) -> Floats:
        count, length = tokens.shape
        ids = ctranslate2.StorageView.from_array(np.ascontiguousarray(tokens))
        lengths = ctranslate2.StorageView.from_array(np.full(count, length, np.int32))
        out = self.encoder.forward_batch(ids, lengths)
        return pooled(np.array(out.last_hidden_state))
