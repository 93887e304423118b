"""What a request of a row computes, from the shape of its network alone: the same for all sides."""

from __future__ import annotations

from rows import Row

from halfbyte.bench_models import SHAPES, Shape


def shape_of(row: Row) -> Shape:
    """The network of a row, by its key."""
    for word, name in (("smollm2", "smollm2"), ("8b", "llama-8b"), ("bert", "bert-base"), ("minilm", "minilm")):
        if word in row.key:
            return SHAPES[name]
    return SHAPES["llama-1b"]


def layer_weights(shape: Shape) -> int:
    """Of all linear layers but the output layer."""
    narrow = (shape.kv_heads or shape.heads) * shape.head_dim
    matrices = 3 if shape.decoder else 2  # gate, up and down; or up and down
    attention = 2 * shape.hidden * (shape.hidden + narrow)
    return shape.layers * (attention + matrices * shape.hidden * shape.intermediate)


def gflop(row: Row) -> float:
    """Multiplications and additions of one request, 1e9: linear layers, attention, the output layer where it is run."""
    shape, request = shape_of(row), row.request()
    if row.task == "open":
        return 0.0
    per_key = 4 * shape.layers * shape.hidden
    output = shape.vocab * shape.hidden if shape.decoder else 0
    if row.task == "decode":
        sequences, prompt = len(request["prompts"]), len(request["prompts"][0])
        keys = prompt + 1 + (request["steps"] + 1) / 2
        one = 2 * (layer_weights(shape) + output) + per_key * keys
        return sequences * request["steps"] * one * 1e-9
    if row.task == "prefill":
        tokens = len(request["tokens"])
        return (tokens * (2 * layer_weights(shape) + per_key * (tokens + 1) / 2) + 2 * output) * 1e-9
    sentences, tokens = len(request["tokens"]), len(request["tokens"][0])
    return sentences * tokens * (2 * layer_weights(shape) + per_key * tokens) * 1e-9


def tokens_per_pass(row: Row) -> int:
    """Tokens that one reading of the weights serves, where a row decodes."""
    return len(row.request()["prompts"]) if row.task == "decode" else row.work
