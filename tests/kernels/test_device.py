"""Choice of the instruction set, threads, concurrent use, fork."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_checks import ISAS

from halfbyte import _core


def test_best_first():
    assert _core.isas()[-1] == "scalar"
    assert len(set(_core.isas())) == len(_core.isas())
    assert _core.available_cores() >= 1


def test_the_forced_set_runs(isa):
    """In a process of its own: what the environment says at start is what the device says it is."""
    program = "from halfbyte import _core; print(_core.isa(), _core.Ops('cpu', 2, 'fast').description, sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == f"{isa}|cpu {isa}, 2 threads, fast"


# Sets that differ in their integer products alone, which are exact; tests/repo/test_symbols.py sees them apart.
SAME_FLOATS = {"avx512bw": "avx512", "avx_vnni": "avx2", "avx_vnni_evex": "avx2"}


def test_instruction_sets_differ(monkeypatch, rng):
    """Each sums the same product in another order: equal bits would mean that one set runs for all."""
    weight = _core.quantize(rng.standard_normal((64, 1024)).astype(np.float32), "f32", 64, True)
    x = rng.standard_normal((4, 1024)).astype(np.float32)
    results = {}
    for name in ISAS:
        if name == "avx512_emulated":  # which may well do what AVX-512 does, bit for bit
            continue
        monkeypatch.setenv("HALFBYTE_ISA", name)
        bits = _core.Ops("cpu", 1, "float32").linear(x, weight, None).tobytes()
        results.setdefault(SAME_FLOATS.get(name, name), set()).add(bits)
    assert all(len(bits) == 1 for bits in results.values())
    assert len(set.union(*results.values())) == len(results) > 1


def test_an_unknown_set_lists_those_that_run(monkeypatch):
    monkeypatch.setenv("HALFBYTE_ISA", "mmx")
    with pytest.raises(_core.InvalidArgumentError, match=r'HALFBYTE_ISA: "mmx" cannot run here.*scalar') as info:
        _core.Ops("cpu", 1, "high")
    for name in _core.isas():
        assert name in str(info.value)
    with pytest.raises(_core.InvalidArgumentError, match="mmx"):
        _core.isa()


def test_devices_by_name():
    assert _core.Ops("auto", 1, "high").description.startswith("cpu ")
    with pytest.raises(_core.InvalidArgumentError, match='found "tpu"'):
        _core.Ops("tpu", 1, "high")
    with pytest.raises(_core.InvalidArgumentError, match='found "cuda:x"'):
        _core.Ops("cuda:x", 1, "high")
    with pytest.raises(_core.InvalidArgumentError, match="threads"):
        _core.Ops("cpu", -1, "high")
    with pytest.raises(_core.InvalidArgumentError, match="precision"):
        _core.Ops("cpu", 1, "low")


def product(ops, x, weight):
    return ops.linear(x, weight, None)


def test_concurrent_use(make_ops, rng):
    """Several Python threads on one device and one weight, its first upload included."""
    ops = make_ops(threads=2)
    weight = _core.quantize(rng.standard_normal((513, 512)).astype(np.float32), "nf4", 64, True)
    inputs = [rng.standard_normal((1 + i % 9, 512)).astype(np.float32) for i in range(40)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda x: product(ops, x, weight), inputs))
    for x, y in zip(inputs, found, strict=True):
        np.testing.assert_array_equal(y, product(ops, x, weight))


def test_thread_counts_agree(make_ops, rng):
    weight = _core.quantize(rng.standard_normal((777, 320)).astype(np.float32), "nf4", 64, True)
    for m in (1, 50):
        x = rng.standard_normal((m, 320)).astype(np.float32)
        results = {product(make_ops(threads=threads), x, weight).tobytes() for threads in (1, 2, 3, 5)}
        assert len(results) == 1


def test_fork(ops, rng):
    """A child made by fork() computes on its own thread; in a process of its own, so that pytest's is not forked."""
    program = """
import os, numpy as np
from halfbyte import _core
rng = np.random.default_rng(0)
ops = _core.Ops("cpu", 3, "high")
weight = _core.quantize(rng.standard_normal((512, 512)).astype(np.float32), "nf4", 64, True)
x = rng.standard_normal((33, 512)).astype(np.float32)
before = ops.linear(x, weight, None)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(ops.linear(x, weight, None), before) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(ops.linear(x, weight, None), before)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60, env={**os.environ})


def test_a_weight_serves_several_devices(monkeypatch, rng):
    """Uploads are kept per device: another instruction set has another layout of the same weight."""
    weight = _core.quantize(rng.standard_normal((40, 128)).astype(np.float32), "nf4", 64, True)
    x = rng.standard_normal((2, 128)).astype(np.float32)
    exact = x.astype(np.float64) @ weight.dequantize().T.astype(np.float64)
    devices = []
    for name in ISAS:
        monkeypatch.setenv("HALFBYTE_ISA", name)
        devices.append(_core.Ops("cpu", 1, "high"))
    for ops in devices + devices[::-1]:
        assert np.abs(product(ops, x, weight) - exact).max() < 1e-3 * np.abs(exact).max()
