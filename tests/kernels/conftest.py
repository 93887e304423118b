"""Devices on every instruction set that can run here."""

import numpy as np
import pytest
from kernel_checks import ISAS

from halfbyte import _core


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Devices made in the test run on this instruction set."""
    monkeypatch.setenv("HALFBYTE_ISA", request.param)
    return request.param


@pytest.fixture
def make_ops(isa):
    def make(precision="high", threads=1):
        ops = _core.Ops("cpu", threads, precision)
        assert isa in ops.description
        return ops

    return make


@pytest.fixture
def ops(make_ops):
    return make_ops()


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)
