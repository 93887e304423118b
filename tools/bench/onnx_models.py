"""BERT encoders as ONNX: float32 as a converter would write it, and int8 by each runtime's own quantiser.

The graph is written out by hand, in the patterns of transformers' export that ONNX Runtime and OpenVINO know how to
fuse: three projections, softmax over the scaled scores, GELU by erf, LayerNormalization.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from halfbyte.bench_models import Shape

Weights = dict[str, NDArray[np.float32]]


class _Graph:
    """Nodes and constants, in order."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def linear(self, x: str, name: str) -> str:
        weight = self.constant(f"{name}.weight_t", self.weights[f"{name}.weight"].T)
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.add("Add", self.add("MatMul", x, weight), bias)

    def norm(self, x: str, name: str, eps: float) -> str:
        parts = [self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.add("LayerNormalization", x, *parts, axis=-1, epsilon=eps)

    def gelu(self, x: str) -> str:
        def number(name: str, value: float) -> str:
            return self.constant(name, np.array(value, np.float32))

        erf = self.add("Erf", self.add("Div", x, number("sqrt2", math.sqrt(2))))
        return self.add("Mul", self.add("Mul", x, self.add("Add", erf, number("one", 1.0))), number("half", 0.5))


def write_float(path: Path, shape: Shape, weights: Weights, tokens: int) -> None:
    """input_ids int64 [sentences, tokens] to last_hidden_state float32 [sentences, tokens, hidden]; no padding."""
    graph = _Graph(weights)
    table = graph.constant("words", weights["embeddings.word_embeddings.weight"])
    # Token type 0 everywhere: its row is the same for all positions.
    places = weights["embeddings.position_embeddings.weight"][:tokens]
    places = places + weights["embeddings.token_type_embeddings.weight"][0]
    x = graph.add("Add", graph.add("Gather", table, "input_ids"), graph.constant("places", places[None]))
    x = graph.norm(x, "embeddings.LayerNorm", 1e-12)
    split = graph.constant("split", np.array([0, 0, shape.heads, shape.head_dim], np.int64))
    merged = graph.constant("merged", np.array([0, 0, shape.hidden], np.int64))
    root = graph.constant("root", np.array(math.sqrt(shape.head_dim), np.float32))
    for index in range(shape.layers):
        layer = f"encoder.layer.{index}"
        q, k, v = (
            graph.add(
                "Transpose",
                graph.add("Reshape", graph.linear(x, f"{layer}.attention.self.{name}"), split),
                perm=[0, 2, 3, 1] if name == "key" else [0, 2, 1, 3],
            )
            for name in ("query", "key", "value")
        )
        scores = graph.add("Softmax", graph.add("Div", graph.add("MatMul", q, k), root), axis=-1)
        context = graph.add("Transpose", graph.add("MatMul", scores, v), perm=[0, 2, 1, 3])
        attention = graph.linear(graph.add("Reshape", context, merged), f"{layer}.attention.output.dense")
        x = graph.norm(graph.add("Add", attention, x), f"{layer}.attention.output.LayerNorm", 1e-12)
        wide = graph.gelu(graph.linear(x, f"{layer}.intermediate.dense"))
        x = graph.norm(
            graph.add("Add", graph.linear(wide, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm", 1e-12
        )
    graph.nodes[-1].output[0] = "last_hidden_state"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "bert",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["sentences", tokens])],
            [
                helper.make_tensor_value_info(
                    "last_hidden_state", TensorProto.FLOAT, ["sentences", tokens, shape.hidden]
                )
            ],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_int8_onnxruntime(source: Path, path: Path, shape: Shape) -> None:
    """As ONNX Runtime's page on transformers advises: its fusions, then dynamic quantisation, a scale per column."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
    from onnxruntime.transformers import optimizer  # noqa: PLC0415

    fused = path.with_suffix(".fused.onnx")
    optimized = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=shape.heads, hidden_size=shape.hidden, opt_level=0
    )
    optimized.save_model_to_file(str(fused))
    # The fused operators have no inferred type of their own; all of them give floats.
    options = {"DefaultTensorType": TensorProto.FLOAT}
    quantize_dynamic(fused, path, weight_type=QuantType.QInt8, per_channel=True, extra_options=options)
    fused.unlink()


def write_int8_openvino(source: Path, path: Path, samples: list[NDArray[np.int64]]) -> None:
    """By NNCF, OpenVINO's quantiser, with its preset for transformers: weights and activations in int8."""
    import nncf  # noqa: PLC0415
    import openvino  # noqa: PLC0415

    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(samples, lambda ids: {"input_ids": ids}),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)
