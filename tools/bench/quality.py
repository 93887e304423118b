"""Quality beside speed: how far a side's numbers are from float64 on the same weights, and perplexity on one page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peer_models as models
from numpy.typing import NDArray
from session import Session

from halfbyte.bench_models import cache_folder

Array = NDArray[np.float64]


def perplexity(logits: NDArray[Any], tokens: NDArray[np.int32]) -> float:
    """Exp of the mean negative log-likelihood of tokens[1:], logits [tokens, vocab]."""
    rows = np.asarray(logits[:-1], np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    likelihood = rows[np.arange(len(rows)), tokens[1:]] - np.log(np.exp(rows).sum(axis=1))
    return float(np.exp(-likelihood.mean()))


def relative_error(values: NDArray[Any], reference: NDArray[Any]) -> float:
    """Root of the mean square of the difference over that of the reference, whose mean is taken off for logits."""
    exact = np.asarray(reference, np.float64)
    difference = np.asarray(values, np.float64) - exact
    return float(np.sqrt(np.mean(difference**2) / np.mean(exact**2)))


def _centred(logits: NDArray[Any]) -> Array:
    """A constant added to all logits of a token changes nothing."""
    values = np.asarray(logits, np.float64)
    centred: Array = values - values.mean(axis=1, keepdims=True)
    return centred


def _reference(key: str, request: dict[str, Any], options: Callable[[], dict[str, Any]]) -> NDArray[np.float32]:
    """Of torch in float64; kept, since it takes a while."""
    path = cache_folder() / "yardsticks" / f"reference-{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name(f"making-{path.name}")
        with Session("torch", {"threads": 2, "dtype": "float64", **options()}) as side:
            side.ask({**request, "save": str(making)})
        making.rename(path)
    values: NDArray[np.float32] = np.load(path)
    return values


def request_for(key: str, row_request: dict[str, Any]) -> dict[str, Any]:
    """What a side is asked for quality `key`: the logits of a page, or the vectors of the row's own sentences."""
    if key in ("q4_1", "q4_0", "nf4"):
        return {"task": "logits", "tokens": models.page_tokens()[:512].tolist()}
    return {"task": "vectors", "tokens": row_request["tokens"]}


def judge(session: Session, key: str, request: dict[str, Any]) -> dict[str, float]:
    """{"error": relative to float64 on this side's own weights, "perplexity": of a decoder}.

    For an encoder the weights are those of the float32 checkpoint, so that rounding them to int8 counts as error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.npy"
        session.ask({**request, "save": str(path)})
        values = np.load(path)
    if request["task"] == "vectors":
        count, length = np.shape(request["tokens"])
        reference = _reference(
            f"{key}-{count}x{length}", request, lambda: {"path": models.encoder(key), "encoder": True}
        )
        return {"error": relative_error(values, reference)}
    reference = _reference(f"smollm2-{key}", request, lambda: {"path": models.smollm2_folder(key)})
    tokens = np.asarray(request["tokens"], np.int32)
    return {
        "error": relative_error(_centred(values), _centred(reference)),
        "perplexity": perplexity(values, tokens),
        "perplexity_float64": perplexity(reference, tokens),
    }
