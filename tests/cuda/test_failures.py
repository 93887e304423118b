"""What goes wrong on a machine with a GPU: no driver, an old one, no memory in mid-load, a kernel that fails.

Each in a process of its own; the environment variable CUDAEMU tells the emulator what to play (tests/cuda/emulator).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from oracle.builders import Zoo

LIST = "from halfbyte import _core\nout = _core.list_devices()"
MEGABYTE = 1 << 20


def run(emulated: str, play: str, code: str, *arguments: str) -> Any:
    """`out` of the code, which may use `path`, `attempt(f)` (the error's class and text, or None) and `free()`."""
    script = f"""
import json, sys
import halfbyte
from halfbyte import _core
path = sys.argv[1] if len(sys.argv) > 1 else None
def attempt(f):
    try:
        f()
    except halfbyte.Error as error:
        return [type(error).__name__, str(error)]
    return None
def free():
    return _core.list_devices()[1]["free_bytes"]
{code}
print(json.dumps(out))
"""
    environment = os.environ | {"HALFBYTE_CUDA_LIBRARY": emulated, "CUDAEMU": play}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        ("device=none", "there is no NVIDIA GPU on this machine, or CUDA_VISIBLE_DEVICES hides it"),
        ("device=no_driver", "there is no NVIDIA driver on this machine"),
        ("device=old_driver", "older than the"),
    ],
)
def test_no_device(play: str, reason: str, emulated: str) -> None:
    code = 'out = [_core.list_devices(), attempt(lambda: _core.Ops("cuda", 1, "high")), halfbyte.devices()]'
    devices, error, names = run(emulated, play, code)
    assert not devices[1]["available"] and reason in devices[1]["description"]
    assert error[0] == "NotFoundError" and reason in error[1] and error[1].endswith('use device="cpu"')
    assert names == ["cpu"]


def test_out_of_memory_in_the_middle_of_loading(emulated: str, zoo: Zoo) -> None:
    """An error that says what there was no room for; all that was taken is given back, and the process goes on."""
    code = """
before = free()
error = attempt(lambda: halfbyte.load(path, device="cuda"))
out = [error, before, free(), halfbyte.load(path, device="cpu").generate_tokens([1, 2, 3], max_tokens=3)]
"""
    # Room for split sums (16 MiB), and for one slab of small buffers or none.
    for limit in (17, 18):
        error, before, after, tokens = run(emulated, f"limit={limit * MEGABYTE}", code, str(zoo.path("llama")))
        assert error is not None and error[0] == "OutOfMemoryError", error
        assert "cuda: no room for" in error[1]
        assert after == before
        assert len(tokens) == 3


def test_out_of_memory_of_a_long_context(emulated: str, zoo: Zoo) -> None:
    """The model lives on: a shorter request is answered."""
    code = """
model = halfbyte.load(path, device="cuda")
hidden = attempt(lambda: model.hidden_states([[1] * 256] * 120))
out = [hidden, model.generate_tokens([1, 2, 3], max_tokens=3)]
"""
    error, tokens = run(emulated, f"open,limit={40 * MEGABYTE}", code, str(zoo.path("llama/nf4-dq")))
    assert error is not None and error[0] == "OutOfMemoryError", error
    assert len(tokens) == 3


def test_a_kernel_that_fails(emulated: str, zoo: Zoo) -> None:
    """CUDA's errors are sticky: the model is dead and says so at every call, the process and the CPU are not."""
    code = """
model = halfbyte.load(path, device="cuda")
first = attempt(lambda: model.logits([[1, 2, 3]]))
second = attempt(lambda: model.logits([[1, 2, 3]]))
third = attempt(lambda: model.generate_tokens([1, 2, 3], max_tokens=3))
model.close()
out = [first, second, third, halfbyte.load(path, device="cpu").generate_tokens([1, 2, 3], max_tokens=3)]
"""
    first, second, third, tokens = run(emulated, "fault=9", code, str(zoo.path("llama/nf4-dq")))
    assert first is not None and first[0] == "InternalError" and "cuda: " in first[1], first
    for error in (second, third):
        assert error is not None and "the device failed before" in error[1] and "load the model anew" in error[1], error
    assert len(tokens) == 3


@pytest.mark.parametrize("call", [1, 4, 9, 20, 60])
def test_any_call_may_fail(call: int, emulated: str, zoo: Zoo) -> None:
    """Whichever call of the CUDA runtime fails: an error, no crash, and a device that still can."""
    code = """
def load_and_run():
    model = halfbyte.load(path, device="cuda")
    model.generate_tokens([1, 2, 3], max_tokens=4)
error = attempt(load_and_run)
out = [error, attempt(load_and_run)]
"""
    error, again = run(emulated, f"fail={call}:719", code, str(zoo.path("llama/nf4-dq")))
    assert error is not None and error[0] in ("InternalError", "NotFoundError", "OutOfMemoryError"), error
    assert again is None, again


@pytest.mark.parametrize(
    "play", ["deferred", "order=reverse,no_reuse", "order=random,seed=2,deferred", "multiprocessors=1"]
)
def test_whenever_the_device_works(play: str, emulated: str, zoo: Zoo) -> None:
    """The same tokens where streams run as late as they may (staging memory must wait for them), where what was freed
    is poisoned, in whatever order threads and blocks run, and where splits of sums follow another machine's size."""
    code = """
cuda = halfbyte.load(path, device="cuda", precision="float32")
cpu = halfbyte.load(path, device="cpu", precision="float32")
prompt = [3, 5, 8, 13, 21, 34]
tokens = [model.generate_tokens(prompt, max_tokens=12) for model in (cuda, cpu)]
both = [model.logits([prompt, prompt[:3]]) for model in (cuda, cpu)]
out = [tokens, float(abs(both[0] - both[1]).max()), float(abs(both[1]).max())]
"""
    (cuda, cpu), error, scale = run(emulated, play, code, str(zoo.path("llama/nf4-dq")))
    assert cuda == cpu
    assert error < 1e-5 * scale  # float32 sums of a few hundred products in another order
