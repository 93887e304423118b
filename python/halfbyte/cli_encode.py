"""``halfbyte encode``."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np

from .cli_options import adapter_name, add_model_arguments, load_model, positive
from .errors import InvalidArgumentError
from .files import whole_file
from .pooling import POOLING_MODES
from .terminal import ProgressBar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``halfbyte encode``."""
    add = parser.add_argument
    add("sentences", nargs="*", metavar="SENTENCE", help="texts (default: the lines of stdin)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON list per sentence and line (the default)")
    output.add_argument("--npy", metavar="FILE", help="a float32 numpy file [sentences, dim]; - for stdout")
    normalize = parser.add_mutually_exclusive_group()
    normalize.add_argument(
        "--normalize",
        dest="normalize",
        action="store_true",
        default=None,
        help="vectors of length 1 (default: as the checkpoint says)",
    )
    normalize.add_argument(
        "--no-normalize", dest="normalize", action="store_false", default=None, help="vectors as they come"
    )
    add("--pooling", choices=POOLING_MODES, help="default: as the checkpoint says")
    add("--batch-size", type=positive, default=32, metavar="N", help="sentences at once (default: %(default)s)")
    add_model_arguments(parser)
    parser.set_defaults(run=encode)


def encode(options: argparse.Namespace) -> int:
    """Run ``halfbyte encode``."""
    sentences = options.sentences or [line.rstrip("\n") for line in sys.stdin]
    if not sentences:
        raise InvalidArgumentError("encode: no sentences: pass them as arguments or as lines of stdin")
    if options.model is None:
        raise InvalidArgumentError("encode: name an encoder with --model MODEL (the demo model isn't one)")
    with load_model(options) as model, ProgressBar(f"encoding {len(sentences)} sentences") as bar:
        vectors = model.encode(
            sentences,
            normalize=options.normalize,
            pooling=options.pooling,
            batch_size=options.batch_size,
            adapter=adapter_name(options),
            progress=bar,
        )
    if options.npy is not None:
        # np.save into a file would add ".npy" to a name, and would not notice a disk that is full.
        data = io.BytesIO()
        np.save(data, vectors)
        if options.npy == "-":
            sys.stdout.buffer.write(data.getbuffer())
        else:
            with whole_file(Path(options.npy)) as file:
                file.write(data.getbuffer())
    else:
        for vector in vectors:
            print(json.dumps([float(np.format_float_positional(value, unique=True)) for value in vector]))
    return 0
