"""``halfbyte generate`` and ``halfbyte chat``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from .cli_options import adapter_name, add_model_arguments, describe, load_model, positive, read_text_argument
from .errors import InvalidArgumentError
from .model import Model
from .stream import GenerationOptions, Stream
from .terminal import note

_CHAT_HELP = "/reset begins a new conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``halfbyte generate``."""
    parser.add_argument("prompt", nargs="?", help="text to continue (default, or -: stdin)")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user's message, in the chat template")
    _add_sampling_arguments(parser, max_tokens=256, temperature=0.0)
    parser.add_argument("-q", "--quiet", action="store_true", help="no line about speed and model at the end")
    add_model_arguments(parser)
    parser.set_defaults(run=generate)


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``halfbyte chat``."""
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    _add_sampling_arguments(parser, max_tokens=1024, temperature=0.0)
    add_model_arguments(parser)
    parser.set_defaults(run=chat)


def _add_sampling_arguments(parser: argparse.ArgumentParser, max_tokens: int, temperature: float) -> None:
    add = parser.add_argument_group("generation").add_argument
    add("-n", "--max-tokens", type=positive, default=max_tokens, metavar="N", help="at most (default: %(default)s)")
    add(
        "-t",
        "--temperature",
        type=float,
        default=temperature,
        metavar="T",
        help="0: always the most probable token (default: %(default)s)",
    )
    add("--top-k", type=int, default=0, metavar="K", help="sample among the K most probable tokens; 0: all")
    add("--top-p", type=float, default=1.0, metavar="P", help="... among those that together have probability P")
    add("--min-p", type=float, default=0.0, metavar="P", help="... no less probable than P times the most probable")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="> 1: tokens seen become less probable")
    add(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtracted once from logits of tokens in the output",
    )
    add("--frequency-penalty", type=float, default=0.0, metavar="X", help="... for each time that they occur")
    add("--seed", type=int, metavar="N", help="the same seed gives the same text")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")


def _sampling(options: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=options.stop,
        adapter=adapter_name(options),
    )


def _show(stream: Stream) -> tuple[str, float]:
    """Print pieces as they come. The text, and tokens per second after the first token."""
    text = ""
    first = last = 0.0
    with stream:
        for piece in stream:
            last = time.monotonic()
            first = first or last
            text += piece
            print(piece, end="", flush=True)
        finished = time.monotonic()
    # The first token is the prompt's work. Text is held back while it may become a stop string, so the end counts too.
    count = len(stream.tokens) - 1
    return text, count / (finished - first) if count > 0 and finished > first > 0 else 0.0


def generate(options: argparse.Namespace) -> int:
    """Run ``halfbyte generate``."""
    piped = "" if options.prompt not in (None, "-") else _read_stdin()
    prompt = read_text_argument(options.prompt, piped)
    with load_model(options) as model:
        settings = _sampling(options)
        if options.chat:
            stream = model.chat([{"role": "user", "content": prompt}], stream=True, **settings)
        else:
            stream = model.generate(prompt, stream=True, **settings)
        _, rate = _show(stream)
        print(flush=True)
        if not options.quiet:
            count = len(stream.tokens)
            speed = f", {rate:.1f} tokens/s" if rate else ""
            note(f"{count} token{'' if count == 1 else 's'}{speed}, {describe(model)}")
    return 0


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidArgumentError('no prompt: pass one ("halfbyte generate TEXT") or pipe it in')
    return sys.stdin.read()


def chat(options: argparse.Namespace) -> int:
    """Run ``halfbyte chat``."""
    with load_model(options) as model:
        opening = [] if options.system is None else [{"role": "system", "content": options.system}]
        model.render_chat([*opening, {"role": "user", "content": "Hello"}])  # no template: say so before anybody types
        note(describe(model))
        if sys.stdin.isatty():
            _edit_lines()
            note(_CHAT_HELP)
        _converse(model, opening, options)
    return 0


def _edit_lines() -> None:
    """Arrow keys and history for input(), where Python was built with readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415


def _converse(model: Model, opening: list[dict[str, str]], options: argparse.Namespace) -> None:
    messages = list(opening)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        except KeyboardInterrupt:
            note("\n" + _CHAT_HELP)
            continue
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
        elif line.startswith("/") and " " not in line:
            note(f"halfbyte: unknown command {line}; {_CHAT_HELP}")
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(model, messages, options)
            messages.append({"role": "assistant", "content": answer})


def _answer(model: Model, messages: list[dict[str, str]], options: argparse.Namespace) -> str:
    stream = model.chat(messages, stream=True, **_sampling(options))
    text = ""
    with stream:
        try:
            for piece in stream:
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            note(" [stopped]")
    print(flush=True)
    return text.strip()
