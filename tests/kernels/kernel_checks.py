"""Every instruction set that can run here, those for tests alone where the build has them; measures of error."""

import contextlib

import numpy as np
import pytest
import torch

from halfbyte import _core

FOR_TESTS = ["avx512_emulated", "avx_vnni_evex"]  # of a build with -DHALFBYTE_EMULATED_ISA=ON


def runnable():
    names = list(_core.isas())
    with pytest.MonkeyPatch.context() as patch:
        for name in FOR_TESTS:
            patch.setenv("HALFBYTE_ISA", name)
            with contextlib.suppress(_core.InvalidArgumentError):
                names.append(_core.isa())
    return names


ISAS = runnable()
torch.set_num_threads(1)  # small arrays: a second thread would only wait


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def relative(found, exact):
    """Root of the mean square error over the root of the mean square."""
    return rms(found - exact) / rms(exact)
