"""ONNX Runtime on the processor."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from side import Floats, Side, pooled


class OnnxRuntime(Side):
    """An encoder, float32 or quantised."""

    def __init__(self, path: str, threads: int) -> None:
        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, tokens: NDArray[np.int32]) -> Floats:
        return pooled(self.session.run(None, {"input_ids": tokens.astype(np.int64)})[0])
