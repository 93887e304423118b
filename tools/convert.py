"""``halfbyte convert`` without the command: ``python tools/convert.py SOURCE OUT [options]``, or from a program::

from convert import convert

convert("path/to/model", "model.gguf", weights="nf4", progress=lambda tensor, done, total: print(tensor, done, total))
"""

from __future__ import annotations

import sys

from halfbyte import cli
from halfbyte.convert import Conversion, Progress, Report, convert

__all__ = ["Conversion", "Progress", "Report", "convert"]

if __name__ == "__main__":
    sys.exit(cli.main(["convert", *sys.argv[1:]]))
