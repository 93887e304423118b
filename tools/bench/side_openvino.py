"""OpenVINO on the processor."""

from __future__ import annotations

import numpy as np
import openvino
from numpy.typing import NDArray
from side import Floats, Side, pooled


class OpenVino(Side):
    """An encoder of ONNX or OpenVINO's own format. `precision`: of the inference, "bf16" or "f32"."""

    def __init__(self, path: str, threads: int, sentences: int, precision: str = "bf16") -> None:
        core = openvino.Core()
        model = core.read_model(path)
        # A shape that is known when the model is compiled is what OpenVINO is quickest with.
        model.reshape([sentences, model.input(0).partial_shape[1]])
        self.version = openvino.__version__.split("-")[0]
        self.model = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self.request = self.model.create_infer_request()

    def encode(self, tokens: NDArray[np.int32]) -> Floats:
        out = self.request.infer({"input_ids": tokens.astype(np.int64)}, share_inputs=True, share_outputs=True)
        return pooled(out[self.model.output(0)])
