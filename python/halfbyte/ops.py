"""The core on plain numpy arrays: quantised linear layers, attention and norms.

Every function takes arrays of any float dtype (float16 and float64 are converted), computes in the requested precision
and returns float32. The keywords ``device``, ``threads`` and ``precision`` are those of :func:`halfbyte.load`.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .errors import InvalidArgumentError

Precision = Literal["high", "fast", "float32"]


@functools.lru_cache(maxsize=32)
def _ops(device: str, threads: int, precision: str) -> _core.Ops:
    # A device owns a thread pool and the repacked copies of weights: made once per setting.
    return _core.Ops(device, threads, precision)


def thread_count(threads: int | None) -> int:
    """The core's number for a ``threads`` argument: 0 stands for one per available core."""
    if threads is None:
        return 0
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
        raise InvalidArgumentError(f"threads: expected a positive integer or None, got {threads!r}")
    return int(threads)


def _get(device: str, threads: int | None, precision: str) -> _core.Ops:
    return _ops(device, thread_count(threads), precision)


def devices() -> tuple[str, ...]:
    """Names of the devices that this build and machine can compute on, for example ``("cpu", "cuda", "cuda:1")``.

    ``halfbyte info --devices`` says what they are, and why there is no "cuda" where there is none.
    """
    return tuple(device["name"] for device in _core.list_devices() if device["available"])


def _float32(where: str, name: str, value: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(value)
    # numpy calls bfloat16 of ml_dtypes a void type (kind "V"); it converts all the same.
    if array.dtype.kind not in "fiuV" or array.dtype.names is not None:
        raise InvalidArgumentError(f"{where}: {name} must be an array of numbers, got dtype {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _vector(where: str, name: str, value: ArrayLike, size: int) -> NDArray[np.float32]:
    array = _float32(where, name, value)
    if array.shape != (size,):
        raise InvalidArgumentError(f"{where}: {name} must have shape ({size},), got {array.shape}")
    return array


def quantize(
    weight: ArrayLike,
    format: str = "nf4",
    *,
    blocksize: int = 64,
    double_quant: bool = True,
) -> _core.Weight:
    """Round a float matrix to a storage format.

    Args:
        weight: [out, in], as ``torch.nn.Linear.weight``.
        format: "nf4" or "fp4" (bit for bit as bitsandbytes), "int8" (a row of up to 512, or
            blocks of 512, 256, ... 32, the largest that divides in), "q8_0" (bit for bit as gguf:
            blocks of 32), "f32", "f16", "bf16".
        blocksize: elements per scale of nf4 and fp4: 32, 64, ..., 4096. Other formats have none to choose.
        double_quant: nf4 and fp4: store the scales as bytes (4.13 bits a weight in place of 4.5).

    Raises:
        InvalidArgumentError: not a matrix, an unknown format, a wrong block size, a NaN or infinity.

    """
    array = _float32("ops.quantize", "weight", weight)
    if array.ndim != 2 or array.size == 0:
        raise InvalidArgumentError(f"ops.quantize: weight must be a matrix [out, in], got shape {array.shape}")
    return _core.quantize(array, format, blocksize, double_quant)


def linear(
    x: ArrayLike,
    weight: _core.Weight,
    bias: ArrayLike | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "high",
) -> NDArray[np.float32]:
    """``x @ weight.T + bias``: x [..., in], weight [out, in], bias [out] -> [..., out]."""
    if not isinstance(weight, _core.Weight):
        raise InvalidArgumentError(
            f"ops.linear: weight must be a halfbyte.Weight, got {type(weight).__name__}; "
            'make one with ops.quantize(array, "nf4") or, unrounded, ops.quantize(array, "f32")'
        )
    array = _float32("ops.linear", "x", x)
    rows, cols = weight.shape
    if array.ndim == 0 or array.shape[-1] != cols:
        raise InvalidArgumentError(
            f"ops.linear: x must have shape [..., {cols}] for a weight of shape ({rows}, {cols}), got {array.shape}"
        )
    b = None if bias is None else _vector("ops.linear", "bias", bias, rows)
    out = _get(device, threads, precision).linear(array.reshape(-1, cols), weight, b)
    return out.reshape(*array.shape[:-1], rows)


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    causal: bool = True,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    *,
    window: int = 0,
    softcap: float = 0.0,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "high",
) -> NDArray[np.float32]:
    """Scaled dot-product attention, in the layout of ``torch.nn.functional.scaled_dot_product_attention``.

    Args:
        q: [..., heads, queries, d].
        k: [..., kv_heads, keys, d]; heads must be a multiple of kv_heads (grouped-query attention).
        v: [..., kv_heads, keys, d].
        causal: the queries are the last ones of the keys: query i sees keys 0 .. keys - queries + i. (For as many keys
            as queries that is torch's ``is_causal``; else it is ``torch.nn.attention.bias.causal_lower_right``.)
        mask: [queries, keys], or anything that broadcasts to [..., heads, queries, keys]. bool: True where a query may
            look; float: added to the scores.
        scale: of the scores; None: 1 / sqrt(d).
        window: > 0: a query sees no further back than this many keys, itself included (needs ``causal``).
        softcap: > 0: scores become ``softcap * tanh(score / softcap)``.
        device: as in :func:`halfbyte.load`.
        threads: as in :func:`halfbyte.load`.
        precision: as in :func:`halfbyte.load`.

    Returns:
        [..., heads, queries, d]

    """
    where = "ops.attention"
    arrays = [_float32(where, name, value) for name, value in (("q", q), ("k", k), ("v", v))]
    qa, ka, va = arrays
    if qa.ndim < 3 or qa.ndim != ka.ndim or ka.shape != va.shape or qa.shape[:-3] != ka.shape[:-3]:
        raise InvalidArgumentError(
            f"{where}: expected q [..., heads, queries, d] and k, v [..., kv_heads, keys, d], "
            f"got {qa.shape}, {ka.shape} and {va.shape}"
        )
    heads, queries, d = qa.shape[-3:]
    kv_heads, keys, k_dim = ka.shape[-3:]
    if d != k_dim or kv_heads == 0 or heads % kv_heads != 0:
        raise InvalidArgumentError(
            f"{where}: q {qa.shape} and k {ka.shape} must agree in d, and heads must be a multiple of kv_heads"
        )
    if causal and queries > keys:
        raise InvalidArgumentError(
            f"{where}: causal attention needs as many keys as queries or more, got {keys} and {queries}"
        )
    if window < 0 or (window > 0 and not causal):
        raise InvalidArgumentError(f"{where}: window must be 0 (off) or positive, with causal=True; got {window}")
    batch = qa.shape[:-3]
    bias = None if mask is None else _additive_mask(mask, (*batch, heads, queries, keys))
    factor = 1.0 / math.sqrt(d) if scale is None else float(scale)
    core = _get(device, threads, precision)
    out = np.empty(qa.shape, dtype=np.float32)
    for index in np.ndindex(*batch):
        out[index] = core.attention(
            np.ascontiguousarray(qa[index].transpose(1, 0, 2)),
            np.ascontiguousarray(ka[index].transpose(1, 0, 2)),
            np.ascontiguousarray(va[index].transpose(1, 0, 2)),
            causal,
            None if bias is None else np.ascontiguousarray(bias[index]),
            factor,
            window,
            softcap,
        ).transpose(1, 0, 2)
    return out


def _additive_mask(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A bool or float mask as float32 [batch..., heads or 1, queries, keys] (a view where it is broadcast)."""
    array = np.asarray(mask)
    if array.dtype == np.bool_:
        array = np.where(array, np.float32(0), np.float32(-np.inf))
    array = _float32("ops.attention", "mask", array)
    heads_axis = len(shape) - 3
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape) if array.ndim <= len(shape) else array
    # One mask for all heads stays one: the core takes it so.
    target = tuple(
        1 if axis == heads_axis and full.ndim == len(shape) and full.shape[axis] == 1 else size
        for axis, size in enumerate(shape)
    )
    try:
        return np.broadcast_to(full, target)
    except ValueError:
        raise InvalidArgumentError(
            f"ops.attention: mask of shape {array.shape} does not broadcast to [..., heads, queries, keys] = {shape}"
        ) from None


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "high",
) -> NDArray[np.float32]:
    """``(x - mean) / sqrt(variance + eps) * gamma + beta``, last axis: x [..., n], gamma, beta [n] -> [..., n]."""
    rows, g = _norm_arguments("ops.layer_norm", x, gamma)
    b = None if beta is None else _vector("ops.layer_norm", "beta", beta, g.size)
    return _get(device, threads, precision).layer_norm(rows.reshape(-1, g.size), g, b, eps).reshape(rows.shape)


def rms_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    eps: float = 1e-6,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "high",
) -> NDArray[np.float32]:
    """``x / sqrt(mean(x^2) + eps) * gamma`` over the last axis: x [..., n], gamma [n] -> [..., n]."""
    rows, g = _norm_arguments("ops.rms_norm", x, gamma)
    return _get(device, threads, precision).rms_norm(rows.reshape(-1, g.size), g, eps).reshape(rows.shape)


def _norm_arguments(where: str, x: ArrayLike, gamma: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    array = _float32(where, "x", x)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise InvalidArgumentError(f"{where}: x must have shape [..., n], got {array.shape}")
    return array, _vector(where, "gamma", gamma, array.shape[-1])
