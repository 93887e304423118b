"""Every instruction set that can run here, AVX-512 under emulation where the build has it; measures of error."""

import os

import numpy as np
import torch

from halfbyte import _core

EMULATED = "avx512_emulated"  # a build with -DHALFBYTE_EMULATED_ISA=ON


def runnable():
    names = list(_core.isas())
    before = os.environ.get("HALFBYTE_ISA")
    try:
        os.environ["HALFBYTE_ISA"] = EMULATED
        names.append(_core.isa())
    except _core.InvalidArgumentError:
        pass
    finally:
        if before is None:
            del os.environ["HALFBYTE_ISA"]
        else:
            os.environ["HALFBYTE_ISA"] = before
    return names


ISAS = runnable()
torch.set_num_threads(1)  # small arrays: a second thread would only wait


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def relative(found, exact):
    """Root of the mean square error over the root of the mean square."""
    return rms(found - exact) / rms(exact)
