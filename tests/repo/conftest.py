import subprocess
import sys

import pytest
from source_tree import ROOT


class Build:
    """A build folder of the core, without Python."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, *targets):
        cmake("--build", str(self.folder), "--parallel", "2", "--target", *targets)


def cmake(*arguments):
    done = subprocess.run(["cmake", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The developer build where there is one, else a fresh one. Targets are brought up to date by `make`."""
    folder = ROOT / "build" / "dev"
    if not (folder / "CMakeCache.txt").exists():
        folder = tmp_path_factory.mktemp("build")
        cmake("-S", str(ROOT), "-B", str(folder), "-DHALFBYTE_PYTHON=OFF", f"-DPython_EXECUTABLE={sys.executable}")
    return Build(folder)
