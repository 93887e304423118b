"""fused_linear(): norm or activation, product and adapters in one call, against the small ops and against float64."""

import numpy as np
import pytest
import torch
from kernel_checks import relative

from halfbyte import _core

TRANSFORMS = ["none", "rms_norm", "layer_norm", "activation", "gated_activation"]
# (rows, in, out): fewer and more rows than adapters share among threads, sizes that fill no panel
SHAPES = [(1, 64, 33), (3, 320, 17), (9, 192, 65), (40, 1024, 16), (130, 576, 40)]
EPS = 1e-5


def transform_of(kind, x, gamma, beta, up):
    """In the precision of its arguments."""
    if kind == "rms_norm":
        return torch.nn.functional.rms_norm(x, x.shape[-1:], gamma, EPS)
    if kind == "layer_norm":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, EPS)
    if kind == "activation":
        return torch.nn.functional.gelu(x)
    return torch.nn.functional.silu(x) * up if kind == "gated_activation" else x


def linear_of(rows, weight, y, a, b, scales, row_adapter):
    out = y + rows @ weight.T
    for i in range(len(a)):
        mine = torch.from_numpy(np.full(len(out), i == 0) if row_adapter is None else row_adapter == i)
        out[mine] += scales[i] * ((rows[mine] @ a[i].T) @ b[i].T)
    return out


def adapters_of(rng, k, n):
    """Three: float16, none for this layer, and float32 of a rank that fills no panel; small beside the product."""
    a = [rng.standard_normal((r, k)).astype(np.float32) / 4 for r in (16, 0, 5)]
    b = [rng.standard_normal((n, r)).astype(np.float32) / 4 for r in (16, 0, 5)]
    a[0], b[0] = a[0].astype(np.float16), b[0].astype(np.float16)
    return a, b, [0.5, 1.0, 2.0]


class Case:
    """Inputs of one call, by numpy; `adapted`: alone, one adapter for all rows, or mixed."""

    def __init__(self, rng, shape, fmt, kind, adapted):
        m, k, n = shape
        self.kind = kind
        self.weight = _core.quantize(rng.standard_normal((n, k)).astype(np.float32), fmt, 64, True)
        self.x, self.up = (rng.standard_normal((m, k)).astype(np.float32) for _ in range(2))
        self.gamma, self.beta = (rng.standard_normal(k).astype(np.float32) for _ in range(2))
        self.y = rng.standard_normal((m, n)).astype(np.float32)
        self.a, self.b, self.scales = ([], [], []) if adapted == "alone" else adapters_of(rng, k, n)
        self.row_adapter = rng.integers(-1, 3, m).astype(np.int32) if adapted == "mixed" else None

    def run(self, ops, in_place=False, composed=False):
        activation = "silu" if self.kind == "gated_activation" else "gelu"
        beta = self.beta if self.kind == "layer_norm" else None
        return ops.fused_linear(
            self.x, self.weight, self.y, self.kind, self.gamma, beta, EPS, activation, self.up,
            self.a, self.b, self.scales, self.row_adapter, in_place, composed,
        )  # fmt: skip

    def reference(self, dtype):
        arrays = (self.x, self.gamma, self.beta, self.up, self.weight.dequantize(), self.y)
        to = [torch.from_numpy(v.astype(dtype)) for v in arrays]
        rows = transform_of(self.kind, *to[:4])
        a, b = ([torch.from_numpy(v.astype(dtype)) for v in each] for each in (self.a, self.b))
        return linear_of(rows, *to[4:], a, b, self.scales, self.row_adapter).numpy(), rows.numpy()


@pytest.mark.parametrize("precision", ["high", "float32"])
@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("adapted", ["alone", "one adapter", "mixed"])
def test_against_small_ops_and_float64(make_ops, rng, precision, kind, adapted):
    for index, shape in enumerate(SHAPES):
        ops = make_ops(precision, 1 + index % 3)
        case = Case(rng, shape, "nf4" if index % 2 == 0 else "f16", kind, adapted)
        found, rows = case.run(ops)
        for in_place, composed in ((True, False), (False, True), (True, True)):
            same, same_rows = case.run(ops, in_place, composed)
            np.testing.assert_array_equal(same, found)
            if kind != "none":
                np.testing.assert_array_equal(same_rows, rows)
        exact, exact_rows = case.reference(np.float64)
        torch_y, torch_rows = case.reference(np.float32)
        if kind != "none":
            assert relative(rows, exact_rows) <= 2 * relative(torch_rows, exact_rows) + 2**-25
        # What integers may cost (tests/kernels/test_linear.py), or twice the error of torch.
        limit = 3e-4 if precision == "high" else 2 * relative(torch_y, exact) + 2**-25
        assert relative(found, exact) <= limit, shape


@pytest.mark.parametrize(("adapted", "most"), [("alone", 1), ("one adapter", 2)])
def test_one_row_is_one_parallel_region(make_ops, rng, adapted, most):
    """The caller makes the row ready while the others wait; A of an adapter is a region where there is enough of it."""
    ops = make_ops(threads=2)
    case = Case(rng, (1, 2048, 512), "nf4", "rms_norm", adapted)
    case.run(ops)  # uploads
    before = ops.parallel_regions
    case.run(ops)
    assert ops.parallel_regions - before == most
