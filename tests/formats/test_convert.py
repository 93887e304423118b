"""halfbyte.convert: sources to targets and back, bit for bit where nothing is rounded; killed, starved, lied to."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import gguf
import numpy as np
import pytest
import torch
import transformers

import halfbyte
from halfbyte import _core, cli, errors
from halfbyte.convert import Report, convert
from halfbyte.gguf_tokenizer import load_gguf_tokenizer
from halfbyte.tokenizer import load_folder_tokenizer
from oracle import packages
from oracle.bnb4 import dequantize_4bit
from oracle.cases import SEQUENCES

SOURCES = [
    "llama",  # blocks of 64 cross rows
    "llama_aligned",
    "llama_tied/bf16",
    "llama_bias/f16",
    "llama_rope3",
    "llama/sharded",
    "llama_aligned/nf4-dq",
    "llama_aligned/fp4",
    "llama/nf4-dq",
    "llama/int8",
    "gpt2/int8",
    "mistral",
    "gpt2",
    "gpt2/nf4-dq",
    "bert",
    "llama_blocks/Q4_1.gguf",
    "llama_blocks/F16.gguf",
    "llama_k_tied/Q6_K.gguf",
    "gpt2_blocks/Q8_0.gguf",
    "bert_blocks/Q4_0.gguf",
]


def run(path: Path, quantize: str | None = None) -> list[np.ndarray]:
    with halfbyte.load(path, precision="float32", quantize=quantize) as model:  # type: ignore[arg-type]
        if model.info["causal"]:
            return [model.logits([ids])[0] for ids in SEQUENCES]
        return [model.hidden_states([ids])[0] for ids in SEQUENCES]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("panels", [True, False], ids=["panels", "planes"])
@pytest.mark.parametrize("name", SOURCES)
def test_kept_weights_give_the_same_answers(zoo: Any, tmp_path: Path, name: str, panels: bool) -> None:
    source, target = zoo.path(name), tmp_path / "model.gguf"
    result = convert(source, target, panels=panels, verify=True)
    assert all(r.largest == 0 for r in result.reports) and result.reports
    assert_equal(run(target), run(source))
    assert result.bytes == target.stat().st_size
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("weights", ["nf4", "fp4", "int8", "q8_0"])
@pytest.mark.parametrize(
    "name", ["llama_blocks", "llama_aligned", "gpt2_blocks", "bert_blocks", "llama_blocks/F32.gguf"]
)
def test_rounded_as_while_loading(zoo: Any, tmp_path: Path, name: str, weights: Any) -> None:
    source, target = zoo.path(name), tmp_path / "model.gguf"
    convert(source, target, weights=weights)
    expected = run(source, weights) if weights != "q8_0" else None
    storages = {w.partition("_panels")[0] for w in halfbyte.load(target).info["storages"]}
    assert weights in storages
    if expected is not None:
        assert_equal(run(target), expected)
    else:
        kept, rounded = _core.Checkpoint(str(source)), _core.Checkpoint(str(target))
        for found, _, stored, role, _, _, turned, order in kept.plan()[1]:
            if role == "linear":
                exact = kept.weight(found).transposed() if turned else kept.weight(found)
                if order and kept.has_reference_rows:
                    exact = exact.reordered([int(i) for i in np.argsort(order)])
                np.testing.assert_array_equal(
                    rounded.weight(stored).dequantize(), exact.encoded("q8_0", 64, False).dequantize()
                )


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_another_processor_reads_the_panels(zoo: Any, tmp_path: Path, isa: str) -> None:
    """The order of the codes is in the file: a processor that wants another one repacks, bit for bit."""
    target = tmp_path / "model.gguf"
    convert(zoo.path("llama_aligned/nf4-dq"), target)
    script = (
        "import sys, halfbyte, numpy as np; m = halfbyte.load(sys.argv[1]);"
        "np.save(sys.argv[2], m.logits([[5, 9, 200, 17]])[0]); print(m.info['device'])"
    )
    answers = []
    for i, path in enumerate((zoo.path("llama_aligned/nf4-dq"), target)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), str(tmp_path / f"{i}.npy")],
            env={**os.environ, "HALFBYTE_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        if "cannot run here" in done.stderr:
            pytest.skip(f"no {isa} here")
        assert done.returncode == 0, done.stderr
        assert isa in done.stdout
        answers.append(np.load(tmp_path / f"{i}.npy"))
    np.testing.assert_array_equal(*answers)


def test_panels_are_used_where_they_are_mapped(zoo: Any, tmp_path: Path) -> None:
    """What the device holds of such a weight beside the mapped codes is its scales: a 33rd."""
    target = tmp_path / "model.gguf"
    convert(zoo.path("llama_aligned/nf4-dq"), target)
    weight = _core.Checkpoint(str(target)).weight("blk.0.ffn_up.weight")
    assert weight.format == "nf4_panels"
    ops = _core.Ops("cpu", 1, "high")
    back = ops.round_trip(weight)
    expected = _core.Checkpoint(str(zoo.path("llama_aligned/nf4-dq"))).weight("model.layers.0.mlp.up_proj.weight")
    for key, plane in expected.planes().items():
        assert np.asarray(back.planes()[key]).tobytes() == np.asarray(plane).tobytes(), key
    for key, plane in expected.planes().items():  # without a device, too
        assert np.asarray(weight.planes()[key]).tobytes() == np.asarray(plane).tobytes(), key


# ---- bitsandbytes folders


@pytest.mark.parametrize("name", ["llama", "llama_aligned", "gpt2", "bert", "llama_tied/bf16"])
@pytest.mark.parametrize(("weights", "double"), [("nf4", True), ("fp4", False)])
def test_a_folder_that_transformers_loads(zoo: Any, tmp_path: Path, name: str, weights: Any, double: bool) -> None:
    source, folder = zoo.path(name), tmp_path / "folder"
    convert(source, folder, format="bitsandbytes", weights=weights, double_quant=double, verify=True)
    assert_equal(run(folder), run(source, weights) if double else run(folder))
    model = getattr(transformers, zoo.spec(name).model).from_pretrained(folder, device_map="cpu")
    ours = _core.Checkpoint(str(folder))
    seen = 0
    for module_name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = module.weight
            exact = dequantize_4bit(weight.data, weight.quant_state).float().numpy()
            names = [n for n in ours.names() if n.endswith(f"{module_name}.weight")]
            found = torch.from_numpy(ours.weight(names[0]).dequantize()).to(weight.quant_state.dtype).float().numpy()
            np.testing.assert_array_equal(found, exact)
            seen += 1
    assert seen == sum(role == "linear" for _, _, _, role, *_ in ours.plan()[1])


@pytest.mark.parametrize(
    "name", ["llama/nf4-dq", "llama_aligned/fp4-dq", "gpt2/nf4-dq", "bert/fp4", "llama/int8", "gpt2/int8"]
)
def test_there_and_back(zoo: Any, tmp_path: Path, name: str) -> None:
    """bitsandbytes folder -> one file -> bitsandbytes folder: every tensor of the first is in the last, bit for bit."""
    from safetensors.numpy import load_file

    convert(zoo.path(name), tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "folder", format="bitsandbytes")
    before = load_file(zoo.path(name) / "model.safetensors")
    after = load_file(tmp_path / "folder" / "model.safetensors")
    missing = {k for k in before if k not in after and f"bert.{k}" not in after}
    assert not {k for k in missing if "pooler" not in k and "lm_head" not in k}
    for key, value in before.items():
        other = after.get(key, after.get(f"bert.{key}"))
        if other is not None and "quant_state" not in key:
            assert other.tobytes() == value.tobytes(), key
    assert_equal(run(tmp_path / "folder"), run(zoo.path(name)))
    kind = bnb.nn.Linear8bitLt if name.endswith("int8") else bnb.nn.Linear4bit
    model = getattr(transformers, zoo.spec(name).model).from_pretrained(tmp_path / "folder", device_map="cpu")
    assert any(isinstance(module, kind) for module in model.modules())


def test_a_real_encoder(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 holds a buffer of integers, which is left out, and a pooler, which is kept."""
    convert(packages.minilm(), tmp_path / "folder", format="bitsandbytes", weights="nf4")
    names = _core.Checkpoint(str(tmp_path / "folder")).names()
    assert "pooler.dense.weight" in names and not any("position_ids" in n for n in names)
    model = transformers.BertModel.from_pretrained(tmp_path / "folder", device_map="cpu")
    assert isinstance(model.encoder.layer[0].output.dense, bnb.nn.Linear4bit)
    text = "A sentence about cats."
    with halfbyte.load(tmp_path / "folder") as ours, halfbyte.load(packages.minilm(), quantize="nf4") as theirs:
        np.testing.assert_array_equal(ours.encode(text), theirs.encode(text))


# ---- what other tools see


def test_the_file_is_an_ordinary_gguf(zoo: Any, tmp_path: Path) -> None:
    convert(zoo.path("llama_aligned"), tmp_path / "model.gguf", weights="nf4")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    field = {k: v.contents() for k, v in reader.fields.items()}
    assert field["general.architecture"] == "llama"
    assert (field["llama.block_count"], field["llama.attention.head_count"]) == (2, 6)
    assert json.loads(field["halfbyte.weights"])["version"] == 1
    assert len(field["halfbyte.source_sha256"]) == 64
    names = {t.name for t in reader.tensors}
    assert {"token_embd.weight", "blk.0.attn_q.weight.codes", "blk.0.attn_q.weight.absmax"} <= names
    assert all(t.data_offset % 64 == 0 for t in reader.tensors)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_16_bits_are_what_llama_cpp_reads(zoo: Any, tmp_path: Path, kind: Any) -> None:
    """Tensors, types and shapes as llama.cpp's own converter writes them (oracle/gguf_files.py), values bit for bit."""
    convert(zoo.path("llama_blocks"), tmp_path / "ours.gguf", weights=kind)
    ours = {t.name: t for t in gguf.GGUFReader(tmp_path / "ours.gguf").tensors}
    theirs = {t.name: t for t in gguf.GGUFReader(zoo.path(f"llama_blocks/{kind.upper()}.gguf")).tensors}
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert list(ours[name].shape) == list(tensor.shape), name
        if ours[name].tensor_type == tensor.tensor_type:
            assert ours[name].data.tobytes() == tensor.data.tobytes(), name
        else:  # theirs keeps some matrices wider
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32, name
    fields = gguf.GGUFReader(tmp_path / "ours.gguf").fields
    needed = gguf.GGUFReader(zoo.path(f"llama_blocks/{kind.upper()}.gguf")).fields
    for key in needed:
        if key.startswith(("llama.", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.model")):
            assert key in fields, key


def test_the_tokenizer_comes_along(zoo: Any, tmp_path: Path) -> None:
    convert(zoo.path("llama_aligned"), tmp_path / "model.gguf", weights="int8")
    ours, theirs = halfbyte.load(tmp_path / "model.gguf"), halfbyte.load(zoo.path("llama_aligned"))
    text = "A text, with some words."
    assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    assert ours.tokenizer.stop_ids == theirs.tokenizer.stop_ids
    assert ours.generate(text, max_tokens=3, temperature=0.0) is not None


@pytest.mark.parametrize("source", ["minilm", "llama_aligned"])
def test_other_tools_find_the_tokenizer(zoo: Any, tmp_path: Path, source: str) -> None:
    """The ids of a file whose carried files are left out: WordPiece, and byte-level BPE (cut as "default" says)."""
    folder = packages.minilm() if source == "minilm" else zoo.path(source)
    convert(folder, tmp_path / "m.gguf", weights="nf4")
    rewrite(tmp_path / "m.gguf", tmp_path / "bare.gguf", halfbyte_files=None, tokenizer_huggingface_json=None)
    bare = _core.Checkpoint(str(tmp_path / "bare.gguf"))
    assert bare.metadata("halfbyte.files") is None
    ours, theirs = load_gguf_tokenizer(bare, "bare.gguf"), load_folder_tokenizer(folder)
    for text in ("Hello world, embeddings are unaffable!", "Naïve café; it's 2023.", "[MASK] ##ing"):
        if source == "minilm":
            assert ours.encode(text) == theirs.encode(text)
            assert theirs.decode(ours.encode(text)) == ours.decode(theirs.encode(text))
    assert ours.encode(" a b") == theirs.encode(" a b")
    if source == "minilm":
        fields = {k: v.contents() for k, v in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
        assert fields["bert.pooling_type"] == gguf.PoolingType.MEAN
        assert fields["tokenizer.ggml.token_type_count"] == 2


def test_same_input_same_bytes(zoo: Any, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        convert(zoo.path("llama_aligned"), tmp_path / name, weights="nf4")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# ---- choices


def test_keep_float(zoo: Any, tmp_path: Path) -> None:
    keep = ["model.layers.0.self_attn.q_proj", "model.layers.1"]
    convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", weights="nf4", keep_float=keep, block=128)
    checkpoint = _core.Checkpoint(str(tmp_path / "m.gguf"))
    formats = {n: checkpoint.weight(n).format for n in checkpoint.names() if len(checkpoint.shape(n)) == 2}
    assert formats["blk.0.attn_q.weight"] == formats["blk.1.ffn_up.weight"] == formats["output.weight"] == "f32"
    assert formats["blk.0.attn_k.weight"] == "nf4"  # 192 columns are no whole blocks of 128
    assert checkpoint.weight("blk.0.attn_k.weight").block_size == 128
    with pytest.raises(errors.InvalidArgumentError, match=r"nothing in the model is named no\.such"):
        convert(zoo.path("llama_aligned"), tmp_path / "n.gguf", weights="nf4", keep_float=["no.such"])


def test_rounding_twice_must_be_asked_for(zoo: Any, tmp_path: Path) -> None:
    source = zoo.path("llama_blocks/Q4_1.gguf")
    with pytest.raises(errors.UnsupportedError, match=r"is q4_1 already.*--requantize"):
        convert(source, tmp_path / "m.gguf", weights="nf4")
    result = convert(source, tmp_path / "m.gguf", weights="nf4", requantize=True, verify=True)
    worst = result.reports[0]
    assert isinstance(worst, Report) and 0.01 < worst.relative < 0.2 and 0.98 < worst.cosine < 1
    with pytest.raises(errors.UnsupportedError, match="210 inputs, and int8 needs a multiple of 32"):
        convert(zoo.path("llama"), tmp_path / "n.gguf", weights="int8")
    with pytest.raises(errors.InvalidArgumentError, match="weights must be one of"):
        convert(source, tmp_path / "n.gguf", weights="q3")  # type: ignore[arg-type]
    with pytest.raises(errors.UnsupportedError, match=r"no config\.json"):
        convert(source, tmp_path / "folder", format="bitsandbytes", weights="nf4", requantize=True)


def test_the_command(zoo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.gguf"
    assert cli.main(["convert", str(zoo.path("bert_blocks")), str(target), "--weights", "nf4", "--verify"]) == 0
    out = capsys.readouterr().out
    for part in (str(target), "nf4", "verified", "1 - cosine", "MB"):
        assert part in out
    assert cli.main(["info", str(target)]) == 0
    assert "available" in capsys.readouterr().out
    assert cli.main(["convert", str(tmp_path / "no"), str(target)]) == 1


def test_the_script(zoo: Any, tmp_path: Path) -> None:
    """tools/convert.py: as a command, and to import, with a progress callback."""
    script = Path(__file__).parents[2] / "tools/convert.py"
    command = [sys.executable, script, zoo.path("bert_blocks"), tmp_path / "a.gguf", "--weights", "nf4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and str(tmp_path / "a.gguf") in done.stdout, done.stderr
    failed = subprocess.run([*command[:3], tmp_path], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and f"{tmp_path}: can't be written" in failed.stderr
    spec = importlib.util.spec_from_file_location("convert_script", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    calls: list[tuple[str, int, int]] = []
    result = module.convert(
        zoo.path("bert_blocks"), tmp_path / "b.gguf", weights="nf4", progress=lambda *call: calls.append(call)
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    names, done_bytes, totals = zip(*calls, strict=True)
    assert len(calls) == result.tensors + 1 and names[-1] == "" and "encoder.layer.0" in names[5]
    assert sorted(done_bytes) == list(done_bytes) and done_bytes[-1] == result.source_bytes
    assert set(totals) == {result.source_bytes}


# ---- nothing is lost


def test_a_full_disk(zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"what was there")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(errors.InputOutputError, match=r"MB are needed, and .* free; nothing was written"):
        convert(zoo.path("bert"), target)
    monkeypatch.undo()
    # And in mid-write: a file may not grow beyond 64 KiB.
    script = (
        "import resource, signal, sys, halfbyte\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: halfbyte.convert(sys.argv[1], sys.argv[2])\n"
        "except halfbyte.InputOutputError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(zoo.path("bert")), str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "it is as it was before" in done.stdout
    assert target.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_killed_at_any_moment(zoo: Any, tmp_path: Path) -> None:
    source, target = zoo.path("llama_aligned"), tmp_path / "m.gguf"
    convert(source, target, weights="nf4")
    before = target.read_bytes()
    script = (
        "import sys, halfbyte; print('ready', flush=True)\n"
        "while True: halfbyte.convert(sys.argv[1], sys.argv[2], weights='int8')"
    )
    moments = random.Random(5)
    finished = 0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", script, str(source), str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        names = [p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"]
        assert names == ["m.gguf"]
        after = target.read_bytes()
        finished += after != before
        assert set(halfbyte.load(target).info["storages"]) <= {"f32", "nf4_panels", "int8"}
    convert(source, target, weights="int8")
    assert set(halfbyte.load(target).info["storages"]) == {"f32", "int8"}
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]  # what the killed ones left is gone too


# ---- files that lie


def rewrite(path: Path, target: Path, **changes: Any) -> None:
    """A copy of a GGUF file with other values of its metadata; None leaves the key out."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_custom_alignment(64)
    for key, field in reader.fields.items():
        name = key.replace(".", "_")
        if key.startswith(("GGUF.", "general.architecture", "general.alignment")) or changes.get(name, "") is None:
            continue
        value = changes.get(name, field.contents())
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else field.types[0]
        writer.add_key_value(key, value, kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _edited(text: str, **changes: Any) -> str:
    document = json.loads(text)
    document["weights"]["blk.0.attn_q.weight"].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda t: t[:-1], "halfbyte.weights"),
        (lambda t: "[]", "must be an object"),
        (lambda t: t.replace('"version": 1', '"version": 2'), "version 2, and this build of halfbyte reads version 1"),
        (lambda t: t.replace('"version": 1', '"version": "x"'), '"version" must be an integer'),
        (lambda t: _edited(t, storage="nf3"), 'storage "nf3" is not known'),
        (lambda t: _edited(t, rows=-1), '"rows" must be an integer from 1'),
        (lambda t: _edited(t, rows=1 << 39), "needs"),
        (lambda t: _edited(t, cols=1 << 62), '"cols" must be an integer'),
        (lambda t: _edited(t, cols=96), "bytes of"),
        (lambda t: _edited(t, block=48), "power of two"),
        (lambda t: _edited(t, nested_block=100), "expected a power of two"),
        (lambda t: _edited(t, nested_block=0), '"nested_block" must be an integer from 1'),
        (lambda t: t.replace("blk.0.attn_q.weight", "blk.9.attn_q.weight"), "blk.9.attn_q.weight.codes is missing"),
        (lambda t: t.replace("blk.0.attn_q.weight", "token_embd.weight"), "is the name of a tensor too"),
    ],
)
def test_a_description_that_lies(zoo: Any, tmp_path: Path, edit: Any, error: str) -> None:
    convert(zoo.path("bert_blocks"), tmp_path / "m.gguf", weights="nf4")
    text = gguf.GGUFReader(tmp_path / "m.gguf").fields["halfbyte.weights"].contents()
    rewrite(tmp_path / "m.gguf", tmp_path / "bad.gguf", halfbyte_weights=edit(text))
    with pytest.raises((errors.CorruptFileError, errors.UnsupportedError), match=error):
        halfbyte.load(tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"block": 32}, "expected a row of 105"), ({"rows": 7}, "bytes of"), ({"nested_block": 256}, "is not known")],
)
def test_rows_of_int8_that_lie(zoo: Any, tmp_path: Path, changes: dict[str, int], error: str) -> None:
    convert(zoo.path("bert/int8"), tmp_path / "m.gguf")
    text = gguf.GGUFReader(tmp_path / "m.gguf").fields["halfbyte.weights"].contents()
    rewrite(tmp_path / "m.gguf", tmp_path / "bad.gguf", halfbyte_weights=_edited(text, **changes))
    with pytest.raises((errors.CorruptFileError, errors.UnsupportedError), match=error):
        halfbyte.load(tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    "files", ["[]", "{", '{"../x": "y"}', '{"/x": "y"}', '{"a/b/c": "y"}', '{"tokenizer.json": 3}']
)
def test_carried_files_that_lie(zoo: Any, tmp_path: Path, files: str) -> None:
    convert(zoo.path("bert_blocks"), tmp_path / "m.gguf")
    rewrite(tmp_path / "m.gguf", tmp_path / "bad.gguf", halfbyte_files=files)
    with pytest.raises(errors.CorruptFileError, match=r"halfbyte\.files"):
        halfbyte.load(tmp_path / "bad.gguf").encode("text")


def test_row_order_and_config_that_lie(zoo: Any, tmp_path: Path) -> None:
    convert(zoo.path("bert_blocks"), tmp_path / "m.gguf", weights="nf4")
    rewrite(tmp_path / "m.gguf", tmp_path / "a.gguf", halfbyte_row_order="sideways")
    with pytest.raises(errors.UnsupportedError, match=r'halfbyte\.row_order is "sideways"'):
        halfbyte.load(tmp_path / "a.gguf")
    rewrite(tmp_path / "m.gguf", tmp_path / "b.gguf", halfbyte_config="{]")
    with pytest.raises(errors.CorruptFileError, match=r"halfbyte\.config"):
        halfbyte.load(tmp_path / "b.gguf")
