"""An adapter for every feature of docs/adapters.md on each architecture that has such a thing: the rows and columns of
its conformance table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
)

from oracle.peft_models import Trained
from oracle.vocabulary import VOCAB

COLUMNS = ("llama", "gpt2", "bert")

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
BERT = ["query", "key", "value", "output.dense", "intermediate.dense"]

INVOCATION = [7, 301]
_CAUSAL = {"task_type": "CAUSAL_LM"}


@dataclass(frozen=True)
class Cell:
    row: str
    column: str
    key: str  # of SPECS
    high: bool = False  # held against the bound of precision "high" too
    generates: bool = False


SPECS: dict[str, Trained] = {}
CELLS: list[Cell] = []
COMBINED: list[str] = []


def _lora(**fields: Any) -> Callable[[], LoraConfig]:
    return lambda: LoraConfig(**{"r": 4, "lora_alpha": 8} | fields)


def _add(row: str, key: str, trained: Trained, **marks: bool) -> None:
    column = trained.base.partition("_")[0]
    assert column in COLUMNS and key not in SPECS
    SPECS[key] = trained
    CELLS.append(Cell(row, column, key, **marks))


def _llama(row: str, key: str, config: Callable[[], Any], base: str = "llama", **more: Any) -> None:
    marks = {mark: more.pop(mark) for mark in ("high", "generates") if mark in more}
    _add(row, f"llama-{key}", Trained(base, config, **more), **marks)


def _gpt2(row: str, key: str, config: Callable[[], Any], base: str = "gpt2", **more: Any) -> None:
    marks = {mark: more.pop(mark) for mark in ("high", "generates") if mark in more}
    _add(row, f"gpt2-{key}", Trained(base, config, **more), **marks)


def _bert(row: str, key: str, config: Callable[[], Any], run: str = "hidden", base: str = "bert", **more: Any) -> None:
    marks = {mark: more.pop(mark) for mark in ("high", "generates") if mark in more}
    _add(row, f"bert-{key}", Trained(base, config, run, **more), **marks)


def _plain() -> None:
    row = "LoRA"
    _llama(row, "lora", _lora(target_modules="all-linear"), high=True, generates=True)
    _gpt2(row, "lora", _lora(target_modules=GPT2), generates=True)
    _bert(row, "lora", _lora(target_modules=BERT))
    row = "`use_rslora`"
    _llama(row, "rslora", _lora(target_modules=LLAMA, use_rslora=True, r=16))
    _gpt2(row, "rslora", _lora(target_modules=GPT2, use_rslora=True, r=16))
    _bert(row, "rslora", _lora(target_modules=BERT, use_rslora=True, r=16))
    row = "`rank_pattern`, `alpha_pattern`"
    ranks = {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 5}, "alpha_pattern": {r"mlp\.(gate|up)_proj": 20}}
    _llama(row, "patterns", _lora(target_modules=LLAMA, **ranks))
    ranks = {"rank_pattern": {"c_attn": 2, "h.0.mlp.c_fc": 5}, "alpha_pattern": {r"h\.1\..*": 20}}
    _gpt2(row, "patterns", _lora(target_modules=GPT2, **ranks))
    ranks = {"rank_pattern": {"query": 2}, "alpha_pattern": {r"layer\.1\..*\.dense": 20}}
    _bert(row, "patterns", _lora(target_modules=BERT, **ranks))
    row = "`layers_to_transform`, `exclude_modules`"
    _llama(row, "layers", _lora(target_modules=LLAMA, layers_to_transform=[1], exclude_modules=["o_proj"]))
    _gpt2(row, "layers", _lora(target_modules=GPT2, layers_to_transform=[1], exclude_modules=["c_fc"]))
    _bert(row, "layers", _lora(target_modules=BERT, layers_to_transform=[1], exclude_modules=["key"]))


def _dora_and_biases() -> None:
    row = "`use_dora`, linear layers"
    _llama(row, "dora", _lora(target_modules=LLAMA, use_dora=True), high=True, generates=True)
    _gpt2(row, "dora", _lora(target_modules=GPT2, use_dora=True), generates=True)
    _bert(row, "dora", _lora(target_modules=BERT, use_dora=True))
    for base in ("llama_aligned", "llama_blocks"):  # rows are whole blocks: a device has an order of its own for them
        SPECS[f"dora-{base}"] = Trained(base, _lora(target_modules=LLAMA, use_dora=True))
    row = "`use_dora`, embeddings"
    _llama(row, "dora-emb", _lora(target_modules=["embed_tokens", "q_proj"], use_dora=True))
    _gpt2(row, "dora-emb", _lora(target_modules=["wte", "wpe", "c_attn"], use_dora=True), base="gpt2_untied")
    _bert(row, "dora-emb", _lora(target_modules=["word_embeddings", "query"], use_dora=True))
    row = '`use_dora` with `bias="all"`'
    _llama(row, "dora-bias", _lora(target_modules=LLAMA, use_dora=True, bias="all"), base="llama_bias")
    _gpt2(row, "dora-bias", _lora(target_modules=GPT2, use_dora=True, bias="all"))
    _bert(row, "dora-bias", _lora(target_modules=BERT, use_dora=True, bias="all"))
    row = '`bias="all"`'
    _llama(row, "bias-all", _lora(target_modules=["q_proj"], bias="all"), base="llama_bias")
    _gpt2(row, "bias-all", _lora(target_modules=["c_attn"], bias="all"))
    _bert(row, "bias-all", _lora(target_modules=["query"], bias="all"))
    row = '`bias="lora_only"`'
    _llama(row, "bias-own", _lora(target_modules=["q_proj", "up_proj"], bias="lora_only"), base="llama_bias")
    _gpt2(row, "bias-own", _lora(target_modules=["c_attn"], bias="lora_only"))
    _bert(row, "bias-own", _lora(target_modules=["query", "output.dense"], bias="lora_only"))
    row = "`lora_bias`"
    _llama(row, "lora-bias", _lora(target_modules=LLAMA, lora_bias=True), base="llama_bias", high=True, generates=True)
    _gpt2(row, "lora-bias", _lora(target_modules=GPT2, lora_bias=True))
    _bert(row, "lora-bias", _lora(target_modules=BERT, lora_bias=True))


def _embeddings_and_saved() -> None:
    row = "embeddings"
    _llama(row, "emb", _lora(target_modules=["embed_tokens", "q_proj"]), generates=True)
    _gpt2(row, "emb", _lora(target_modules=["wte", "wpe", "c_attn"]), base="gpt2_untied")
    _bert(row, "emb", _lora(target_modules=["word_embeddings", "position_embeddings", "query"]))
    row = "embeddings that are tied"
    _llama(row, "emb-tied", _lora(target_modules=["embed_tokens", "q_proj"]), base="llama_tied")
    _gpt2(row, "emb-tied", _lora(target_modules=["wte", "c_attn"]))
    row = "embeddings, `ensure_weight_tying`"
    tied = {"ensure_weight_tying": True}
    _llama(row, "emb-ensure", _lora(target_modules=["embed_tokens", "q_proj"], **tied), base="llama_tied")
    _gpt2(row, "emb-ensure", _lora(target_modules=["wte", "c_attn"], **tied))
    row = "`lm_head`"
    _llama(row, "head", _lora(target_modules=["lm_head", "q_proj"]), generates=True)
    _gpt2(row, "head", _lora(target_modules=["lm_head", "c_attn"]), base="gpt2_untied")
    row = "`modules_to_save`: `lm_head`, embeddings, norms"
    saved = ["lm_head", "embed_tokens", "input_layernorm", "norm"]
    _llama(row, "saved", _lora(target_modules=["q_proj"], modules_to_save=saved), high=True, generates=True)
    saved = ["lm_head", "wte", "ln_1"]
    _gpt2(row, "saved", _lora(target_modules=["c_attn"], modules_to_save=saved), base="gpt2_untied")
    _bert(row, "saved", _lora(target_modules=["query"], modules_to_save=["word_embeddings", "LayerNorm"]))
    row = "`modules_to_save`: linear layers"
    _llama(row, "saved-linear", _lora(target_modules=["q_proj"], modules_to_save=["down_proj", "k_proj"]))
    _gpt2(row, "saved-linear", _lora(target_modules=["c_attn"], modules_to_save=["c_fc"]))
    _bert(row, "saved-linear", _lora(target_modules=["query"], modules_to_save=["key", "intermediate.dense"]))
    row = "`modules_to_save`: tied embeddings"
    _llama(row, "saved-tied", _lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), base="llama_tied")
    _gpt2(row, "saved-tied", _lora(target_modules=["c_attn"], modules_to_save=["wte"]))
    row = "`modules_to_save`: tied embeddings, `ensure_weight_tying`"
    both = _lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"], **tied)
    _llama(row, "saved-ensure", both, base="llama_tied")
    _gpt2(row, "saved-ensure", _lora(target_modules=["c_attn"], modules_to_save=["wte"], **tied))


# Many sequences: classes come of one of their tokens alone.
_SHORT = {"run": "classify", "lengths": tuple(range(1, 41))}


def _heads() -> None:
    row = "sequence classification"
    for add, kind, q in ((_llama, "Llama", "q_proj"), (_gpt2, "GPT2", "c_attn"), (_bert, "Bert", "query")):
        config = _lora(target_modules=[q], task_type="SEQ_CLS")
        add(row, "classes", config, model=f"{kind}ForSequenceClassification", high=True, **_SHORT)
        # A base with a head, which the adapter's takes the place of.
        config = _lora(target_modules=[q], task_type="SEQ_CLS")
        add(
            "sequence classification, of a base with a head",
            "own-classes",
            config,
            base=f"{kind.lower()}_classes",
            **_SHORT,
        )
    config = _lora(target_modules=["query"], task_type="TOKEN_CLS")
    row = "token classification"
    for add, kind, q in ((_llama, "Llama", "q_proj"), (_gpt2, "GPT2", "c_attn")):
        shape = {"run": "classify_tokens", "model": f"{kind}ForTokenClassification"}
        add(row, "token-classes", _lora(target_modules=[q], task_type="TOKEN_CLS"), **shape)
    _bert(row, "token-classes", config, "classify_tokens", model="BertForTokenClassification")
    row = "token classification, of a base with a head"
    _bert(row, "own-token-classes", config, "classify_tokens", base="bert_token_classes")


def _vocabularies() -> None:
    grown = {"vocabulary": VOCAB + 6, "tokens": (VOCAB + 5, 3, VOCAB)}
    row = "resized vocabulary in `modules_to_save`"
    whole = _lora(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    _llama(row, "resized", whole, **grown, high=True, generates=True)
    whole = _lora(target_modules=["c_attn"], modules_to_save=["lm_head", "wte"])
    _gpt2(row, "resized", whole, base="gpt2_untied", **grown)
    _bert(row, "resized", _lora(target_modules=["query"], modules_to_save=["word_embeddings"]), **grown)
    row = "resized vocabulary in `target_modules`"
    _llama(row, "resized-emb", _lora(target_modules=["q_proj", "embed_tokens", "lm_head"]), **grown)
    _gpt2(row, "resized-emb", _lora(target_modules=["c_attn", "wte", "lm_head"]), base="gpt2_untied", **grown)
    grown["save"] = {"save_embedding_layers": True}  # peft knows by itself of embed_tokens and lm_head alone
    _bert(row, "resized-emb", _lora(target_modules=["query", "word_embeddings"]), **grown)
    row = "resized vocabulary, `save_embedding_layers`"
    _llama(row, "resized-save", _lora(target_modules=["q_proj"]), **grown)
    _gpt2(row, "resized-save", _lora(target_modules=["c_attn"]), base="gpt2_untied", **grown)
    _bert(row, "resized-save", _lora(target_modules=["query"]), **grown)
    row = "resized vocabulary, tied"
    _llama(row, "resized-tied", _lora(target_modules=["q_proj"]), base="llama_tied", **grown)
    _gpt2(row, "resized-tied", _lora(target_modules=["c_attn"]), **grown)
    rows: dict[str, Any] = {"tokens": (9, 5)}
    row = "`trainable_token_indices`, list"
    _llama(row, "tokens", _lora(target_modules=["q_proj"], trainable_token_indices=[9, 5]), **rows, generates=True)
    _gpt2(row, "tokens", _lora(target_modules=["c_attn"], trainable_token_indices=[9, 5]), base="gpt2_untied", **rows)
    _bert(row, "tokens", _lora(target_modules=["query"], trainable_token_indices=[9, 5]), **rows)
    row = "`trainable_token_indices`, by module"
    chosen = {"embed_tokens": [9, 5], "lm_head": [1, 200]}
    _llama(row, "tokens-by", _lora(target_modules=["q_proj"], trainable_token_indices=chosen), **rows)
    chosen = {"wte": [9, 5], "lm_head": [1, 200]}
    config = _lora(target_modules=["c_attn"], trainable_token_indices=chosen)
    _gpt2(row, "tokens-by", config, base="gpt2_untied", **rows)
    chosen = {"word_embeddings": [9, 5]}
    _bert(row, "tokens-by", _lora(target_modules=["query"], trainable_token_indices=chosen), **rows)
    row = "`trainable_token_indices`, tied"
    config = _lora(target_modules=["q_proj"], trainable_token_indices=[9, 5])
    _llama(row, "tokens-tied", config, base="llama_tied", **rows)
    _gpt2(row, "tokens-tied", _lora(target_modules=["c_attn"], trainable_token_indices=[9, 5]), **rows)


def _more_lora() -> None:
    row = "`alora_invocation_tokens`"
    woken = {"alora_invocation_tokens": INVOCATION} | _CAUSAL
    # The first sequence is not invoked, the others are.
    _llama(row, "alora", _lora(target_modules=LLAMA, **woken), tokens=tuple(INVOCATION), generates=True)
    _gpt2(row, "alora", _lora(target_modules=GPT2, **woken), tokens=tuple(INVOCATION), generates=True)
    row = "`alora_invocation_tokens` that occur twice"
    twice = (*INVOCATION, 8, *INVOCATION, 11)
    _llama(row, "alora-twice", _lora(target_modules=LLAMA, **woken), tokens=twice, lengths=(3, 9, 17, 34))
    _gpt2(row, "alora-twice", _lora(target_modules=GPT2, **woken), tokens=twice, lengths=(3, 9, 17, 34))
    row = "`layer_replication`"
    order = [[0, 2], [0, 1], [1, 2], [0, 2]]
    _llama(row, "repeated", _lora(target_modules=LLAMA, layer_replication=order, **_CAUSAL), high=True, generates=True)
    _bert(row, "repeated", _lora(target_modules=BERT, layer_replication=order))
    row = "`layer_replication` with `use_dora`"
    config = _lora(target_modules=LLAMA, layer_replication=[[0, 2], [1, 2]], use_dora=True, **_CAUSAL)
    _llama(row, "repeated-dora", config)
    _bert(row, "repeated-dora", _lora(target_modules=BERT, layer_replication=[[0, 2], [1, 2]], use_dora=True))
    for init in ("pissa", "olora"):
        row = f'`init_lora_weights="{init}"`, converted'
        _llama(row, init, _lora(target_modules=LLAMA, init_lora_weights=init), converted=True)
        if init != "olora":  # which peft 0.21 can't convert for a Conv1D
            _gpt2(row, init, _lora(target_modules=GPT2, init_lora_weights=init), converted=True)
        _bert(row, init, _lora(target_modules=BERT, init_lora_weights=init), converted=True)


def _kinds() -> None:
    row = "`IA3`"
    _llama(row, "ia3", lambda: IA3Config(**_CAUSAL), high=True, generates=True)
    _gpt2(row, "ia3", lambda: IA3Config(**_CAUSAL), generates=True)
    layers = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
    _bert(row, "ia3", lambda: IA3Config(**layers))
    row = "`IA3` without feed-forward layers, with their bias"
    config = lambda *layers: IA3Config(target_modules=list(layers), feedforward_modules=[])  # noqa: E731
    _llama(row, "ia3-own", lambda: config("k_proj", "o_proj", "down_proj"), base="llama_bias")
    _gpt2(row, "ia3-own", lambda: config("c_attn", "c_fc"))
    _bert(row, "ia3-own", lambda: config("key", "intermediate.dense"))
    row = "`PROMPT_TUNING`"
    prompts = {"num_virtual_tokens": 3}
    causal, features = prompts | _CAUSAL, prompts | {"task_type": "FEATURE_EXTRACTION"}
    _llama(row, "prompt", lambda: PromptTuningConfig(**causal), high=True, generates=True)
    _gpt2(row, "prompt", lambda: PromptTuningConfig(**causal), generates=True)
    _bert(row, "prompt", lambda: PromptTuningConfig(**features))
    row = "`PREFIX_TUNING`"
    _llama(row, "prefix", lambda: PrefixTuningConfig(**causal), high=True, generates=True)
    _gpt2(row, "prefix", lambda: PrefixTuningConfig(**causal), generates=True)
    _bert(row, "prefix", lambda: PrefixTuningConfig(**features))
    row = "`PREFIX_TUNING` with `prefix_projection`"
    projected = {"prefix_projection": True, "encoder_hidden_size": 24}
    _llama(row, "prefix-mlp", lambda: PrefixTuningConfig(**causal, **projected))
    _gpt2(row, "prefix-mlp", lambda: PrefixTuningConfig(**causal, **projected))
    _bert(row, "prefix-mlp", lambda: PrefixTuningConfig(**features, **projected))
    for encoder in ("MLP", "LSTM"):
        row = f"`P_TUNING`, {encoder}"
        shape = {"encoder_hidden_size": 24, "encoder_reparameterization_type": encoder}
        _llama(row, f"p-{encoder}", lambda shape=shape: PromptEncoderConfig(**causal, **shape), generates=True)
        _gpt2(row, f"p-{encoder}", lambda shape=shape: PromptEncoderConfig(**causal, **shape))
        _bert(row, f"p-{encoder}", lambda shape=shape: PromptEncoderConfig(**features, **shape))
    classes = prompts | {"task_type": "SEQ_CLS"}
    for add, kind in ((_llama, "Llama"), (_gpt2, "GPT2"), (_bert, "Bert")):
        shape = {"model": f"{kind}ForSequenceClassification"} | _SHORT
        add("`PROMPT_TUNING` of a head", "prompt-classes", lambda: PromptTuningConfig(**classes), **shape)
        add("`PREFIX_TUNING` of a head", "prefix-classes", lambda: PrefixTuningConfig(**classes), **shape)
    row = "`LN_TUNING`"
    _llama(row, "norms", lambda: LNTuningConfig(**_CAUSAL), high=True, generates=True)
    _gpt2(row, "norms", lambda: LNTuningConfig(target_modules=["ln_1", "ln_2", "ln_f"], **_CAUSAL))
    _bert(row, "norms", lambda: LNTuningConfig(target_modules=["LayerNorm"]))
    row = "`TRAINABLE_TOKENS`"
    tokens = lambda module: TrainableTokensConfig(token_indices=[9, 5], target_modules=[module])  # noqa: E731
    _llama(row, "only-tokens", lambda: tokens("embed_tokens"), tokens=(9, 5), generates=True)
    _gpt2(row, "only-tokens", lambda: tokens("wte"), base="gpt2_untied", tokens=(9, 5))
    _bert(row, "only-tokens", lambda: tokens("word_embeddings"), tokens=(9, 5))


def _combined() -> None:
    """Several features at once; no rows of the table."""
    for key, trained in {
        "mistral-prefix": Trained("mistral", lambda: PrefixTuningConfig(num_virtual_tokens=5, **_CAUSAL)),
        "mistral-prompt": Trained("mistral", lambda: PromptTuningConfig(num_virtual_tokens=5, **_CAUSAL)),
        "dora-head": Trained("llama", _lora(target_modules=["lm_head", "v_proj"], use_dora=True, use_rslora=True)),
        "dora-tied": Trained("llama_tied", _lora(target_modules=["embed_tokens", "v_proj"], use_dora=True)),
        "dora-patterns": Trained(
            "gpt2", _lora(target_modules=GPT2, use_dora=True, rank_pattern={"c_fc": 7}, alpha_pattern={"c_attn": 3})
        ),
        "tokens-and-saved": Trained(
            "llama",
            _lora(target_modules=["k_proj"], trainable_token_indices=[9, 5], modules_to_save=["lm_head"], bias="all"),
            tokens=(9, 5),
        ),
        "tokens-of-wide-layers": Trained(
            "llama_tied_wide", _lora(target_modules=["q_proj"], trainable_token_indices=[9, 5]), tokens=(9, 5)
        ),
        "resized-with-wide-layers": Trained(
            "llama_tied_wide",
            _lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], **_CAUSAL),
            vocabulary=VOCAB + 3,
            tokens=(VOCAB + 1,),
        ),
        "positions-as-many-as-tokens": Trained(
            "bert_long",
            _lora(target_modules=["query"], modules_to_save=["position_embeddings", "word_embeddings"]),
            "hidden",
            vocabulary=VOCAB + 3,
            tokens=(VOCAB + 1,),
        ),
        "ia3-and-saved": Trained("llama", lambda: IA3Config(modules_to_save=["lm_head", "norm"], **_CAUSAL)),
        "dora-and-classes": Trained(
            "bert",
            _lora(target_modules=BERT, use_dora=True, bias="all", task_type="SEQ_CLS"),
            model="BertForSequenceClassification",
            **_SHORT,
        ),
        "repeated-and-saved": Trained(
            "llama",
            _lora(
                target_modules=["q_proj"],
                layer_replication=[[0, 2], [1, 2]],
                modules_to_save=["lm_head", "down_proj"],
                **_CAUSAL,
            ),
        ),
    }.items():
        SPECS[key] = trained
        COMBINED.append(key)


_plain()
_combined()
_dora_and_biases()
_embeddings_and_saved()
_heads()
_vocabularies()
_more_lora()
_kinds()
