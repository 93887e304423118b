"""Writes the first inputs of every fuzz target into a folder: small files that are right, and some that are just wrong.

    python tests/fuzz/make_seeds.py FOLDER

What fuzzing has found since then lies in ``corpus`` beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "formats"))
from files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    LLAMA,
    STRING,
    U8,
    U16,
    U32,
    U64,
    gguf_bytes,
    gguf_pair,
    gguf_tensor,
    safetensors_bytes,
)

Tensors = dict[str, np.ndarray]
NAMES = {
    "int32": "I32",
    "float32": "F32",
    "float16": "F16",
    "uint8": "U8",
    "int8": "I8",
    "int64": "I64",
    "float64": "F64",
}
# ggml's number: elements and bytes of a block
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50),
    20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
}  # fmt: skip
NF4 = np.linspace(-1, 1, 16, dtype=np.float32)


def header_and_data(tensors: Tensors) -> tuple[bytes, bytes]:
    header, data = {}, b""
    for name, value in tensors.items():
        begin, data = len(data), data + value.tobytes()
        shape = list(value.shape)
        header[name] = {"dtype": NAMES[value.dtype.name], "shape": shape, "data_offsets": [begin, len(data)]}
    return json.dumps(header).encode(), data


def sections(*parts: Any) -> bytes:
    """Texts that each end with a NUL, and bytes behind them."""
    return b"\0".join(part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts)


def zeros(shapes: dict[str, list[int]]) -> Tensors:
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


def gguf_file(pairs: list[bytes], tensors: list[tuple[str, list[int], int, bytes]]) -> bytes:
    """tensors: name, dimensions (fastest first), ggml's number, bytes."""
    heads, data = [], b""
    for name, dims, kind, content in tensors:
        heads.append(gguf_tensor(name, dims, kind, len(data)))
        data += content + b"\0" * (-len(content) % 32)
    return gguf_bytes(pairs, heads, data)


# --- models ---------------------------------------------------------------------------------------------------------

LAYER = {
    "input_layernorm": [4], "post_attention_layernorm": [4], "self_attn.q_proj": [4, 4], "self_attn.k_proj": [2, 4],
    "self_attn.v_proj": [2, 4], "self_attn.o_proj": [4, 4], "mlp.gate_proj": [6, 4], "mlp.up_proj": [6, 4],
    "mlp.down_proj": [4, 6],
}  # fmt: skip
LLAMA_SHAPES = {
    "model.embed_tokens.weight": [5, 4],
    "model.norm.weight": [4],
    "lm_head.weight": [5, 4],
    **{f"model.layers.0.{name}.weight": shape for name, shape in LAYER.items()},
}
LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 6,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 5, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "max_position_embeddings": 8,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8, "rope_theta": 500000.0,
}  # fmt: skip
BERT_LAYER = {
    "attention.self.query": [4, 4], "attention.self.key": [4, 4], "attention.self.value": [4, 4],
    "attention.output.dense": [4, 4], "intermediate.dense": [6, 4], "output.dense": [4, 6],
}  # fmt: skip
BERT_CONFIG = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 4, "intermediate_size": 6,
    "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5, "max_position_embeddings": 8,
    "type_vocab_size": 2, "hidden_act": "gelu",
}  # fmt: skip
GPT2_CONFIG = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 4, "n_inner": 6, "n_head": 2, "n_layer": 1,
    "vocab_size": 5, "n_positions": 8, "tie_word_embeddings": True,
}  # fmt: skip


def bert_tensors() -> Tensors:
    norm = ["embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"]
    shapes = {
        "embeddings.word_embeddings.weight": [5, 4],
        "embeddings.position_embeddings.weight": [8, 4],
        "embeddings.token_type_embeddings.weight": [2, 4],
        **{f"{name}.{part}": [4] for name in norm for part in ("weight", "bias")},
    }
    for name, shape in BERT_LAYER.items():
        shapes |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": shape[:1]}
    return zeros(shapes)


def gpt2_tensors() -> Tensors:
    shapes = {"transformer.wte.weight": [5, 4], "transformer.wpe.weight": [8, 4]}
    for name in ("transformer.ln_f", "transformer.h.0.ln_1", "transformer.h.0.ln_2"):
        shapes |= {f"{name}.weight": [4], f"{name}.bias": [4]}
    layers = {"attn.c_attn": [4, 12], "attn.c_proj": [4, 4], "mlp.c_fc": [4, 6], "mlp.c_proj": [6, 4]}  # [in, out]
    for name, shape in layers.items():
        shapes |= {f"transformer.h.0.{name}.weight": shape, f"transformer.h.0.{name}.bias": shape[1:]}
    return zeros(shapes)


GGUF_LAYER = {
    "attn_norm": [4], "ffn_norm": [4], "attn_q": [4, 4], "attn_k": [4, 2], "attn_v": [4, 2], "attn_output": [4, 4],
    "ffn_gate": [4, 6], "ffn_up": [4, 6], "ffn_down": [6, 4],
}  # fmt: skip


def gguf_llama(scale: int) -> bytes:
    """Scale 1: floats, 4 and 6 wide; scale 8: Q8_0, 32 and 64 wide."""
    sizes = {
        "block_count": 1, "embedding_length": 4 * scale, "feed_forward_length": 6 if scale == 1 else 64,
        "attention.head_count": 2, "attention.head_count_kv": 1, "context_length": 8, "vocab_size": 5,
    }  # fmt: skip
    pairs = [LLAMA, *(gguf_pair(f"llama.{key}", U32, value) for key, value in sizes.items())]
    pairs += [
        gguf_pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        gguf_pair("llama.rope.freq_base", F32, 1e4),
    ]
    pairs += [gguf_pair("llama.rope.scaling.type", STRING, "linear"), gguf_pair("llama.rope.scaling.factor", F32, 2.0)]
    tensors = []
    shapes = {"token_embd": [4, 5], "output_norm": [4], "output": [4, 5]}
    for name, dims in {**shapes, **{f"blk.0.{key}": value for key, value in GGUF_LAYER.items()}}.items():
        scaled = [{5: 5, 6: 6 if scale == 1 else 64}.get(size, size * scale) for size in dims]
        count = int(np.prod(scaled))
        if scale == 1 or len(dims) == 1:
            tensors.append((f"{name}.weight", scaled, 0, b"\0" * (4 * count)))
        else:
            tensors.append((f"{name}.weight", scaled, 8, b"\0" * (count // 32 * 34)))
    if scale == 1:
        tensors.append(("rope_freqs.weight", [1], 0, np.ones(1, np.float32).tobytes()))
    return gguf_file(pairs, tensors)


# --- quantised weights ----------------------------------------------------------------------------------------------


def bitsandbytes_weight(kind: str, nested: bool) -> Tensors:
    state: dict[str, Any] = {"quant_type": kind, "blocksize": 32, "dtype": "float16", "shape": [3, 32]}
    absmax: np.ndarray = np.arange(3, dtype=np.float32)
    tensors: Tensors = {"w.weight": np.arange(48, dtype=np.uint8).reshape(48, 1), "w.weight.quant_map": NF4}
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
        absmax = absmax.astype(np.uint8)
        tensors["w.weight.nested_absmax"] = np.ones(1, np.float32)
        tensors["w.weight.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {**tensors, "w.weight.absmax": absmax, f"w.weight.quant_state.bitsandbytes__{kind}": text}


def int8_rows() -> Tensors:
    levels = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    return {"w.weight": levels, "w.SCB": np.ones(3, np.float32), "w.weight_format": np.zeros((), np.uint8)}


def combined(storage: str, nested: bool) -> bytes:
    """halfbyte's own description of a weight of several planes (docs/formats.md)."""
    entry: dict[str, Any] = {"storage": storage, "rows": 2, "cols": 32, "block": 32}
    panels, scales = storage.endswith("panels"), b"\1\2" if nested else np.ones(2, np.float32).tobytes()
    planes: dict[str, tuple[int, bytes]] = {}
    if storage == "int8":
        planes |= {"levels": (24, bytes(64)), "scales": (0, scales)}
    elif storage == "int8_rows":
        planes |= {"levels": (24, bytes(64)), "SCB": (0, scales)}
    elif panels:
        wide = 16 if nested else 64
        maps = np.zeros(16 + (256 if nested else 0), np.float32).tobytes()
        planes |= {"codes": (24, bytes(256)), "absmax": (24 if nested else 0, bytes(wide)), "maps": (0, maps)}
        planes["places"] = (24, bytes(range(128)))
    else:
        planes |= {"codes": (24, bytes(32)), "absmax": (24 if nested else 0, scales), "quant_map": (0, NF4.tobytes())}
        if nested:
            planes["nested_quant_map"] = (0, bytes(1024))
    if nested:
        entry["nested_block"] = 256
        planes |= {"nested_absmax": (0, bytes(4)), "nested_offset": (0, bytes(4))}
    document = {"version": 1, "weights": {"w": entry}}
    pairs = [gguf_pair("halfbyte.weights", STRING, json.dumps(document))]
    pairs += [gguf_pair("halfbyte.config", STRING, json.dumps(LLAMA_CONFIG))]
    pairs += [gguf_pair("halfbyte.row_order", STRING, "huggingface")]
    sizes = {0: 4, 24: 1}
    tensors = [(f"w.{name}", [len(raw) // sizes[kind]], kind, raw) for name, (kind, raw) in planes.items()]
    return gguf_file(pairs, tensors)


EXTREMES: dict[int, list[Any]] = {
    U8: [0, 255], I8: [-128], U16: [65535], I16: [-32768], U32: [2**32 - 1], I32: [-(2**31)], U64: [2**64 - 1],
    I64: [-(2**63)], F32: [float("nan"), 0.5], F64: [float("inf"), -1e300], BOOL: [True, False],
}  # fmt: skip


def gguf_metadata() -> bytes:
    pairs = [LLAMA, gguf_pair("general.alignment", U32, 64), gguf_pair("general.quantization_version", U32, 2)]
    for kind, values in EXTREMES.items():
        pairs += [gguf_pair(f"llama.{kind}", kind, values[0]), gguf_pair(f"x.{kind}", ARRAY, (kind, values))]
    pairs += [gguf_pair("x.texts", ARRAY, (STRING, ["a", "", b"\xff\0"])), gguf_pair("x.none", ARRAY, (STRING, []))]
    return gguf_bytes(pairs, [gguf_tensor("a", [2], 0, 0)], bytes(8), alignment=64)


# --- the targets ----------------------------------------------------------------------------------------------------

LORA_CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": True, "target_modules": ["q_proj"],
    "rank_pattern": {"layers\\.[0-9]\\.self_attn": 8}, "alpha_pattern": {"q_proj": 16, "^(a|b+)*c{2,3}$": 2.5},
}  # fmt: skip


def models() -> dict[str, tuple[dict[str, Any], Tensors]]:
    return {
        "llama": (LLAMA_CONFIG, zeros(LLAMA_SHAPES)),
        "llama3": ({**LLAMA_CONFIG, "rope_scaling": LLAMA3, "sliding_window": 2}, zeros(LLAMA_SHAPES)),
        "bert": (BERT_CONFIG, bert_tensors()),
        "gpt2": (GPT2_CONFIG, gpt2_tensors()),
    }


def gguf_types() -> bytes:
    """A block of every type."""
    return gguf_file([LLAMA], [(f"t{kind}", [n], kind, bytes(size)) for kind, (n, size) in BLOCKS.items()])


def gguf_seeds() -> dict[str, bytes]:
    described = {
        f"{storage}{'-nested' * nested}": combined(storage, nested)
        for storage in ("nf4", "fp4_panels")
        for nested in (False, True)
    }
    return described | {
        "int8": combined("int8", False),
        "int8_rows": combined("int8_rows", False),
        "metadata": gguf_metadata(),
        "types": gguf_types(),
        "empty": gguf_bytes([LLAMA], [gguf_tensor("none", [4, 0], 0, 0)]),
        "rows_of_nothing": gguf_bytes([LLAMA], [gguf_tensor("none", [0, 2**62], 0, 0)]),
        "version_not_utf8": gguf_bytes([LLAMA, gguf_pair("general.quantization_version", STRING, b"\xff")], []),
    }


def safetensors_seeds() -> dict[str, bytes]:
    values = {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16), "c": np.ones((), np.float64)}
    header, data = header_and_data(values | {"d": np.ones(5, np.uint8)})
    claim = {"a": {"dtype": "F32", "shape": [3, 2**28], "data_offsets": [0, 3 * 2**30]}}
    return {
        "plain": safetensors_bytes(header, data),
        "metadata": safetensors_bytes({"__metadata__": {"format": "pt"}}),
        "claim": safetensors_bytes(claim, b"x" * 100),
    }


def bitsandbytes_seeds() -> dict[str, bytes]:
    weights = {
        f"{kind}{'-nested' * nested}": bitsandbytes_weight(kind, nested)
        for kind in ("nf4", "fp4")
        for nested in (False, True)
    }
    return {name: sections(*header_and_data(tensors)) for name, tensors in (weights | {"int8": int8_rows()}).items()}


def config_seeds() -> dict[str, bytes]:
    rope = {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5}
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    linear = {**LLAMA_CONFIG, "rope_parameters": rope, "quantization_config": quantization}
    zero = {**LLAMA_CONFIG, "rope_scaling": {"rope_type": "linear", "factor": 0}}
    configs = {name: config for name, (config, _) in models().items()} | {"linear": linear, "factor_0": zero}
    return {name: sections(config) for name, config in configs.items()}


def adapter_seeds() -> dict[str, bytes]:
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{q}.lora_A.weight": np.ones((2, 4), np.float32), f"{q}.lora_B.weight": np.ones((4, 2), np.float16)}
    lora: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    model, ones = "base_model.model.model", np.ones
    dora = factors | {f"{q}.lora_magnitude_vector": ones(4, np.float32)}
    saved = {
        f"{model}.embed_tokens.weight": ones((7, 4), np.float16),
        "base_model.model.lm_head.weight": ones((7, 4), np.float16),
        f"{model}.norm.weight": ones(4, np.float16),
    }
    table = {
        f"{model}.embed_tokens.lora_embedding_A": ones((2, 5), np.float16),
        f"{model}.embed_tokens.lora_embedding_B": ones((4, 2), np.float16),
        f"{model}.embed_tokens.token_adapter.trainable_tokens_delta": ones((2, 4), np.float16),
    }
    ia3 = {f"{q}.ia3_l": ones((4, 1), np.float32), f"{model}.layers.0.mlp.down_proj.ia3_l": ones((1, 6), np.float32)}
    prompt = {"prompt_embeddings": ones((3, 4), np.float32)}
    prefix = {"prompt_embeddings": ones((3, 8), np.float32)}  # one layer, keys and values of two heads of 2
    kinds: dict[str, tuple[dict[str, Any], Tensors]] = {
        "q_proj": (lora, factors),
        "dora": (lora | {"use_dora": True}, dora),
        "saved": (lora | {"modules_to_save": ["lm_head"]}, factors | saved),
        "tokens": (lora | {"trainable_token_indices": {"embed_tokens": [4, 1]}}, table),
        "layers": (lora | {"layer_replication": [[0, 1], [0, 1]]}, factors),
        "invoked": (lora | {"alora_invocation_tokens": [1, 2]}, factors),
        "ia3": ({"peft_type": "IA3"}, ia3),
        "prompt": ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, prompt),
        "prefix": ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, prefix),
    }
    return {name: sections(config, *header_and_data(tensors)) for name, (config, tensors) in kinds.items()}


def gguf_adapter_seeds() -> dict[str, bytes]:
    pairs = [LLAMA, gguf_pair("general.type", STRING, "adapter"), gguf_pair("adapter.type", STRING, "lora")]
    pairs += [gguf_pair("adapter.lora.alpha", F32, 4.0)]
    pairs += [gguf_pair("adapter.alora.invocation_tokens", ARRAY, (U32, [1, 2]))]
    lora = [
        ("blk.0.attn_q.weight.lora_a", [4, 2], 0, bytes(32)),
        ("blk.0.attn_q.weight.lora_b", [2, 4], 1, bytes(16)),
    ]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    own = [LLAMA, gguf_pair("general.type", STRING, "adapter"), gguf_pair("adapter.type", STRING, "peft")]
    own += [gguf_pair("halfbyte.adapter_config", STRING, json.dumps(config))]
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    peft = [(f"{q}.lora_A.weight", [4, 2], 0, bytes(32)), (f"{q}.lora_B.weight", [2, 4], 0, bytes(32))]
    return {"lora": gguf_file(pairs, lora), "peft": gguf_file(own, peft)}


def packed_models() -> dict[str, tuple[dict[str, Any], Tensors]]:
    """A llama 8 wide whose first layer is packed as GPTQ and AWQ pack it."""
    layer = "model.layers.0.self_attn.q_proj"
    shapes = {name: [2 * n if n == 4 else 8 if n == 2 else n for n in shape] for name, shape in LLAMA_SHAPES.items()}
    plain = zeros({name: shape for name, shape in shapes.items() if not name.startswith(layer)})
    base = LLAMA_CONFIG | {"hidden_size": 8, "num_key_value_heads": 2}
    parts = {f"{layer}.qzeros": np.ones((2, 1), np.int32), f"{layer}.scales": np.ones((2, 8), np.float16)}
    gptq = parts | {f"{layer}.qweight": np.ones((1, 8), np.int32), f"{layer}.g_idx": np.arange(8, dtype=np.int32) // 4}
    awq = parts | {f"{layer}.qweight": np.ones((8, 1), np.int32)}
    settings = {"bits": 4, "group_size": 4}
    return {
        "gptq": (base | {"quantization_config": settings | {"quant_method": "gptq"}}, plain | gptq),
        "awq": (base | {"quantization_config": settings | {"quant_method": "awq"}}, plain | awq),
    }


def lora_config_seeds() -> dict[str, bytes]:
    module = b"model.layers.0.self_attn.q_proj"
    repeated = LORA_CONFIG | {"rank_pattern": {"(?:a?b?){0,9000}": 4}}
    return {"patterns": sections(module, LORA_CONFIG), "repeated": sections(module, repeated)}


def seeds() -> dict[str, dict[str, bytes]]:
    return {
        "json": {
            "kinds": b'{"a": [1, -2, 3.5e10, true, false, null, "\\u00e9\\ud83d\\ude00\\n"], "b": {}, "c": []}',
            "deep": b"[" * 64 + b"]" * 64,
            "deeper": b"[" * 65 + b"]" * 65,
            "twice": b'{"a": 1, "a": 2}',
            "surrogate": b'["\\ud800"]',
            "overlong": b'["\xc0\x80"]',
            "huge": b"[18446744073709551615, -9223372036854775808, 1e999]",
        },
        "gguf": gguf_seeds(),
        "gguf_model": {"floats": gguf_llama(1), "q8_0": gguf_llama(8)},
        "safetensors": safetensors_seeds(),
        "bitsandbytes": bitsandbytes_seeds(),
        "model": {
            name: sections(config, *header_and_data(tensors))
            for name, (config, tensors) in (models() | packed_models()).items()
        },
        "config": config_seeds(),
        "lora_config": lora_config_seeds(),
        "adapter": adapter_seeds(),
        "gguf_adapter": gguf_adapter_seeds(),
        "text": {
            "stops": b"ab\0abab\0\xc3\xa9\0\0\2xa\1b\3\xe2\x98\x83\1\xf0\2\x9f\x98\1\x80\4\xc3\x28ab",
            "bytes": b"\0" + bytes([200]) + bytes(range(56, 256)),
        },
    }


def main(folder: Path) -> None:
    for target, files in seeds().items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / target / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
