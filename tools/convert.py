"""``halfbyte convert`` as a script and as a function: ``python tools/convert.py SOURCE OUT [options]``.

Or, with this folder on the path: ``from convert import convert`` and ``convert(source, out, weights="nf4",
progress=lambda tensor, done, total: ...)``, where done and total are bytes of the source.
"""

from __future__ import annotations

import sys

from halfbyte import cli
from halfbyte.convert import Conversion, Progress, Report, convert

__all__ = ["Conversion", "Progress", "Report", "convert"]

if __name__ == "__main__":
    sys.exit(cli.main(["convert", *sys.argv[1:]]))
