"""The extension module: convert arguments, call the core, translate errors. Nothing here is public; see ``halfbyte``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adapters import Mix

__version__: str

class Error(Exception):
    """Base of the errors below. ``str(error)`` says where, what was expected, what was found, what to do."""

class InvalidArgumentError(Error, ValueError): ...
class NotFoundError(Error, LookupError): ...
class CorruptFileError(Error, ValueError): ...
class UnsupportedError(Error, NotImplementedError): ...
class OutOfMemoryError(Error, MemoryError): ...
class InputOutputError(Error, OSError): ...
class CancelledError(Error): ...
class InternalError(Error, RuntimeError): ...

def isas() -> list[str]:
    """Instruction sets that this build has and this machine can run, best first: ["avx2", "scalar"]."""

def isa() -> str:
    """The one that a device made now would use: what HALFBYTE_ISA names, or the best. InvalidArgumentError if it cannot run."""

def architectures() -> list[str]: ...
def lora_scale(config: str, where: str, module: str, rank: int) -> float:
    """What adapter_config.json says that B (A x) of a module is multiplied by."""

def available_cores() -> int: ...
def read_bandwidth(threads: int = 0, seconds: float = 0.3) -> float:
    """GB/s that `threads` cores (0: all) can read from memory, measured now; takes 512 MiB meanwhile."""

def peak_gflops(threads: int = 0, seconds: float = 0.3, arithmetic: str = "float32") -> float:
    """GFLOP/s that `threads` cores (0: all) can do in multiply-adds of float32, bfloat16, int16 or int8, measured now.
    0 for bfloat16 where the processor has no such instruction."""

class Weight:
    """A matrix [out, in] in the storage it was made with. Immutable."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def format(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def bits_per_weight(self) -> float: ...
    def uploaded_bytes(self, device: str) -> int:
        """On a device of that name, whether this machine has one or not."""
    @property
    def nested_block_size(self) -> int: ...
    @property
    def nested_offset(self) -> float: ...
    def dequantize(self) -> NDArray[np.float32]: ...
    def encoded(self, format: str, block_size: int, double_quant: bool) -> Weight:
        """The same matrix rounded to another storage; a few rows at a time are decoded."""
    def reordered(self, order: list[int]) -> Weight:
        """Row i of the result is row order[i]; exact."""
    def transposed(self) -> Weight:
        """A float matrix [in, out] as [out, in]."""
    def file_parts(self) -> list[tuple[str, str, NDArray[np.uint8]]]:
        """Its planes as halfbyte's files hold them, without a copy: (end of the tensor's name, "I8" or "F32", bytes). One, without a
        name and a type, for a storage that GGUF has a type for."""
    def planes(self) -> dict[str, Any]:
        """Copies. nf4, fp4: codes u8, absmax (f32, or u8 if double-quantised), quant_map f32 [16], and if double-quantised
        nested_absmax f32, nested_quant_map f32 [256], nested_offset float. int8_rows: levels i8, SCB f32. Others: data u8."""

def int8_block(cols: int) -> int: ...
def quantize(weight: NDArray[np.float32], format: str, block_size: int, double_quant: bool) -> Weight: ...
def weight_from_planes(format: str, rows: int, cols: int, block_size: int, planes: dict[str, Any]) -> Weight:
    """The inverse of Weight.planes(); validated."""

def list_devices() -> list[dict[str, Any]]:
    """name, description, available, total_bytes, free_bytes (0 of the host); one "cuda" that isn't available, its description
    the reason, where there is none."""

class Ops:
    """The op vocabulary of one device on numpy arrays."""

    def __init__(self, device: str, threads: int, precision: str) -> None: ...
    @property
    def description(self) -> str: ...
    def linear(self, x: NDArray[np.float32], weight: Weight, bias: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """x [rows, in] -> [rows, out]. The weight is uploaded (repacked) on first use and the result kept with it."""
    def linear_into(
        self, x: NDArray[np.float32], weights: Sequence[Weight], y: NDArray[np.float32], accumulate: bool
    ) -> None:
        """Several weights of one input, side by side into the columns of y (or added to them), whose rows may be strided."""
    def round_trip(self, weight: Weight) -> Weight:
        """The weight uploaded to the device's own layout and put back, bit for bit: the layout loses nothing."""
    def arranged(self, weight: Weight) -> Weight:
        """The weight in the order this device multiplies it in, as a storage that files hold; itself where there is none."""
    def uploaded_bytes(self, weight: Weight) -> int:
        """Bytes of the weight in the device's own layout."""
    def attention(
        self,
        q: NDArray[np.float32],
        k: NDArray[np.float32],
        v: NDArray[np.float32],
        causal: bool,
        mask: NDArray[np.float32] | None,
        scale: float,
        window: int,
        softcap: float,
        cache: str = "",
    ) -> NDArray[np.float32]:
        """q [queries, heads, d], k and v [keys, kv_heads, d]; mask added to the scores, [1 or heads, queries, keys].
        cache "f32", "f16", "bf16", "int8": keys and values go through a cache that holds them so."""
    def layer_norm(
        self, x: NDArray[np.float32], gamma: NDArray[np.float32], beta: NDArray[np.float32] | None, eps: float
    ) -> NDArray[np.float32]: ...
    def rms_norm(self, x: NDArray[np.float32], gamma: NDArray[np.float32], eps: float) -> NDArray[np.float32]: ...
    def activate(self, activation: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def gated_activation(
        self, activation: str, gate: NDArray[np.float32], up: NDArray[np.float32]
    ) -> NDArray[np.float32]: ...
    def rope(
        self,
        x: NDArray[np.float32],
        head_dim: int,
        positions: NDArray[np.int32],
        frequencies: NDArray[np.float32],
        magnitude: float,
        interleaved: bool,
    ) -> NDArray[np.float32]: ...
    @property
    def parallel_regions(self) -> int:
        """Work that was shared among threads so far, each a fork and a join."""
    def fused_linear(
        self,
        x: NDArray[np.float32],
        weight: Weight,
        y: NDArray[np.float32],
        transform: str,
        gamma: NDArray[np.float32] | None,
        beta: NDArray[np.float32] | None,
        eps: float,
        activation: str,
        up: NDArray[np.float32] | None,
        a: Sequence[NDArray[Any]],
        b: Sequence[NDArray[Any]],
        scales: Sequence[float],
        row_adapter: NDArray[np.int32] | None,
        in_place: bool,
        composed: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """y + transform(x) W^T with adapters, and the transformed rows; composed: by the small ops, for comparison."""
    def lora(
        self,
        x: NDArray[np.float32],
        a: Sequence[NDArray[Any]],
        b: Sequence[NDArray[Any]],
        scales: Sequence[float],
        row_adapter: NDArray[np.int32] | None,
        y: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """y + scale * (x A^T) B^T per row. Arrays are float32, float16, or uint16 holding bfloat16."""
    def embed(self, table: Weight, ids: NDArray[np.int32]) -> NDArray[np.float32]: ...
    def pool(
        self, x: NDArray[np.float32], lengths: Sequence[int], pooling: str, normalize: bool
    ) -> NDArray[np.float32]:
        """One row per sequence of consecutive rows; pooling: mean, cls, max, last."""

class Checkpoint:
    """An open checkpoint: a folder, a .safetensors file or a .gguf file."""

    def __init__(self, path: str) -> None: ...
    @property
    def format(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> list[int]: ...
    def weight(self, name: str) -> Weight: ...
    @property
    def has_reference_rows(self) -> bool:
        """False where rows of q and k lie as llama.cpp has them."""
    def plan(self) -> tuple[str, list[tuple[str, str, str, str, int, int, bool, list[int]]]]:
        """The architecture ("llama"), and what it does with each tensor: (name, name in Hugging Face folders, name in GGUF files,
        role, out, in, the file holds [in, out], row i of the layer is row order[i] of a file of llama.cpp). Roles: linear, output,
        embedding, vector (1 x n). Errors: those of loading a model; no value of a matrix is read."""
    def metadata(self, key: str) -> Any:
        """GGUF: one value (numpy array for arrays of numbers, list of bytes for arrays of strings); None if absent."""
    def metadata_json(self) -> str: ...

class Sampler:
    """The sampler of a generation by itself, for tests. Defaults: greedy, every filter off."""

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
    ) -> None: ...
    def observe_prompt(self, tokens: NDArray[np.int32]) -> None: ...
    def sample(self, logits: NDArray[np.float32]) -> int: ...
    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]: ...

class TextStream:
    """The text stream of a generation by itself, for tests."""

    def __init__(self, stop: Sequence[str]) -> None: ...
    def push(self, data: bytes) -> str: ...
    def finish(self) -> str: ...
    @property
    def stopped(self) -> bool: ...

class Generation:
    """One running generation; iterate or drop it."""

    def step(self) -> bool:
        """A chunk of the prompt or one token; releases the GIL. False once finished."""
    @property
    def piece(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def finish_reason(self) -> str: ...

class Engine:
    @staticmethod
    def load(
        path: str,
        device: str,
        threads: int,
        precision: str,
        quantize: str,
        progress: Callable[[float], None] | None,
        output_layer: str = "",
        kv_cache: str = "",
        layers: Mapping[str, tuple[str, int, bool]] = ...,
        device_memory: int = 0,
    ) -> Engine:
        """layers: {linear layer as in Hugging Face files: (format or "" to keep it, block size, double quantised)}, in place
        of ``quantize``."""

    def info(self) -> dict[str, Any]:
        """architecture, format, path, causal, has_logits, vocab_size, hidden_size, layers, max_positions, heads, kv_heads,
        head_dim, token_types, device, precision, kv_cache, load_seconds, weights: list of dict(name, storage, rows, cols,
        bytes)."""
    @property
    def parallel_regions(self) -> int:
        """Work that was shared among threads so far, each a fork and a join."""
    @property
    def replays(self) -> int:
        """Steps that a GPU ran as a recorded graph so far."""
    def logits(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64], adapters: list[Mix] | None
    ) -> NDArray[np.float32]:
        """[total, vocab]"""
    def hidden_states(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int64],
        positions: NDArray[np.int32] | None,
        token_types: NDArray[np.int32] | None,
        adapters: list[Mix] | None,
    ) -> NDArray[np.float32]:
        """[total, hidden]"""
    def embed(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int64],
        token_types: NDArray[np.int32] | None,
        pooling: str,
        normalize: bool,
        adapters: list[Mix] | None,
    ) -> NDArray[np.float32]:
        """[sequences, hidden]; pooling: mean, cls, max, last"""
    def classify(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int64],
        token_types: NDArray[np.int32] | None,
        per_token: bool,
        adapters: list[Mix] | None,
    ) -> NDArray[np.float32]: ...
    def load_adapter(self, path: str, name: str, pinned: bool, lazily: bool) -> None: ...
    def set_adapter_budget(self, bytes: int) -> None: ...
    def adapter_stats(self) -> dict[str, int]: ...
    def adapter_info(self, name: str) -> dict[str, Any]: ...
    def unload_adapter(self, name: str) -> None: ...
    def adapter_names(self) -> list[str]: ...
    def modules(self) -> list[tuple[str, int, int]]: ...
    def set_vocabulary(self, pieces: Sequence[bytes]) -> None: ...
    def generate(
        self,
        prompt: NDArray[np.int32],
        max_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        seed: int,
        stop: Sequence[str],
        stop_tokens: Sequence[int],
        adapter: Mix | None,
    ) -> Generation: ...

class BatchDecoder:
    """Several sequences decoded side by side. For one thread at a time."""

    def __init__(self, engine: Engine, sequences: int, capacity: int, adapters: list[Mix] | None) -> None: ...
    def extend(self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        """Append lengths[s] >= 1 tokens to every sequence, in one pass; releases the GIL."""
    def truncate(self, tokens: int) -> None:
        """Forget all but the first tokens of every sequence."""
    @property
    def logits(self) -> NDArray[np.float32]:
        """[sequences, vocab] behind the last token of each; a copy."""
