"""A loaded checkpoint: text, logits and vectors out of it, with or without an adapter."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import _core, pooling
from .adapters import AdapterChoice, AdapterMethods, mix
from .batch import BatchMethods
from .chat import Message, render
from .errors import InvalidArgumentError, NotFoundError, UnsupportedError
from .gguf_tokenizer import load_gguf_tokenizer
from .numbers import NumberMethods
from .ops import Precision, thread_count
from .packing import token_ids, whole
from .rounding import roundings
from .stream import GenerationOptions, Stream, sampling_options, stop_texts, token_iterator
from .tokenizer import Tokenizer, config_stop_ids, load_folder_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]
Progress = Callable[[float], None]
KvCache = Literal["f16", "bf16", "f32", "int8"]


def load(
    path: str | os.PathLike[str],
    *,
    quantize: str | Mapping[str, str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "high",
    kv_cache: KvCache | None = None,
    device_memory: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a checkpoint.

    Args:
        path: a Hugging Face folder (float or bitsandbytes), a .safetensors file with its config.json beside it,
            or a .gguf file. Weights run with the values they hold.
        quantize: round the linear layers while loading: "nf4", "fp4", "int8", "bf16" or "f16". None: as they are. A
            mapping has one for each name or pattern, named as in Hugging Face files, and "keep" leaves layers as they
            are; the first that fits counts: ``{"model.layers.0": "int8", "*.down_proj": "keep", "*": "nf4"}``.
        device: "cpu", "cuda", "cuda:1" (by CUDA's count) or "auto": what the environment variable
            HALFBYTE_DEVICE names, else a GPU where there is one.
        threads: None: one per available core.
        precision: "high": at least as accurate as 16-bit floating point everywhere; "fast": may
            round activations to int8 where that is quicker; "float32": the reference, float32 activations on decoded
            weights.
        kv_cache: what a generation keeps of the tokens it has read: "f16", "bf16", "f32", or "int8", which rounds keys
            and values to 8 bits with one scale for each head and token. None: "f16"; "f32" with precision "float32".
        device_memory: bytes that weights may take of a GPU's memory; those beyond stay in the host's, layer by layer,
            and are streamed. None: what is free, less a reserve for caches.
        progress: called with 0..1 while loading, from this thread; an exception in it stops the loading.

    Raises:
        NotFoundError: no such file, tensor or config field; no such device in this build.
        UnsupportedError: an architecture, format or config field that halfbyte can't run exactly; the text names it.
        CorruptFileError: files that contradict their format.

    """
    location = Path(path).expanduser()
    if not location.exists():
        hint = (
            ""
            if location.is_absolute() or str(path).count("/") != 1
            else (
                " (halfbyte reads files and folders; to fetch a model of that name first: `hf download "
                f"{path} --local-dir FOLDER`)"
            )
        )
        raise NotFoundError(f"{path}: no such file or folder{hint}")
    plain, layers = roundings(location, quantize)
    if device_memory is not None and device_memory < 1:
        raise InvalidArgumentError(f"device_memory: expected a positive number of bytes or None, got {device_memory!r}")
    engine = _core.Engine.load(
        str(location),
        device,
        thread_count(threads),
        precision,
        plain,
        progress,
        kv_cache=kv_cache or "",
        layers=layers,
        device_memory=device_memory or 0,
    )
    return Model(engine, location)


class Model(AdapterMethods, BatchMethods, NumberMethods):
    """A checkpoint ready to run. Safe to use from many threads at once; made by :func:`load`."""

    def __init__(self, engine: _core.Engine, path: Path) -> None:
        self._open_engine: _core.Engine | None = engine
        self._path = path
        self._lock = threading.RLock()
        self._tokenizer: Tokenizer | None = None
        self._vocabulary_set = False
        self._sentence_config: pooling.SentenceConfig | None = None
        self._facts = engine.info()

    # ---- life

    @property
    def _engine(self) -> _core.Engine:
        engine = self._open_engine
        if engine is None:
            raise InvalidArgumentError(f"{self._path}: the model is closed")
        return engine

    def close(self) -> None:
        """Release the weights. Calls in flight and running streams keep them until they end."""
        self._open_engine = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " (closed)" if self._open_engine is None else ""
        return f"<halfbyte.Model {self._facts['architecture']} {self._facts['format']} {str(self._path)!r}{state}>"

    # ---- facts

    @property
    def info(self) -> dict[str, Any]:
        """What was loaded: architecture, format, sizes, device; ``weights``: a list of dicts (name, storage, ...).

        Also ``bytes`` and ``parameters`` of all weights, ``bits_per_weight``, ``storages`` (parameters in each).
        """
        facts = dict(self._facts)
        weights = facts["weights"]
        storages: dict[str, int] = {}
        for weight in weights:
            storages[weight["storage"]] = storages.get(weight["storage"], 0) + weight["rows"] * weight["cols"]
        facts["parameters"] = sum(storages.values())
        facts["bytes"] = sum(weight["bytes"] for weight in weights)
        facts["bits_per_weight"] = 8 * facts["bytes"] / facts["parameters"] if facts["parameters"] else 0.0
        facts["storages"] = dict(sorted(storages.items(), key=lambda item: -item[1]))
        return facts

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises NotFoundError or UnsupportedError where it has none that can be used."""
        with self._lock:
            if self._tokenizer is None:
                if self._facts["format"] == "gguf":
                    self._tokenizer = load_gguf_tokenizer(_core.Checkpoint(str(self._path)), str(self._path))
                else:
                    self._tokenizer = load_folder_tokenizer(self._folder)
            return self._tokenizer

    @property
    def _folder(self) -> Path:
        return self._path if self._path.is_dir() else self._path.parent

    @property
    def sentence_config(self) -> pooling.SentenceConfig:
        """What :meth:`encode` does where it isn't told otherwise: the checkpoint's sentence-transformers files."""
        with self._lock:
            if self._sentence_config is None:
                if self._facts["format"] == "gguf":
                    checkpoint = _core.Checkpoint(str(self._path))
                    self._sentence_config = pooling.read_gguf(checkpoint, self._facts["architecture"])
                else:
                    self._sentence_config = pooling.read_folder(self._folder)
            return self._sentence_config

    # ---- text

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = ..., **options: Unpack[GenerationOptions]
    ) -> str: ...
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerationOptions]) -> Stream: ...
    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        adapter: AdapterChoice = None,
        stream: bool = False,
    ) -> str | Stream:
        """Continue a prompt; the prompt itself isn't returned.

        Args:
            prompt: a text (special tokens are added as the model was trained with) or token ids (taken as they are).
            max_tokens: end here at the latest, or where the context is full.
            temperature: 0: always the most probable token; the next three are then without effect.
            top_k: sample among this many most probable tokens; 0: all.
            top_p: sample among the most probable tokens that together have this probability.
            min_p: leave out tokens less probable than this fraction of the most probable one.
            repetition_penalty: > 1 makes tokens of the prompt and the output less probable.
            presence_penalty: subtracted once from the logits of tokens in the output.
            frequency_penalty: subtracted from the logits of tokens in the output, for each time that they occur.
            seed: the same seed gives the same text; None: another each time.
            stop: strings that end the text; they aren't part of it.
            adapter: name given to :meth:`load_adapter`, or {name: weight, ...} for the weighted sum of LoRA adapters;
                None: the model alone.
            stream: True: return a :class:`Stream`, an iterator of pieces of text as they become certain.

        Raises:
            InvalidArgumentError: a value out of its range, an empty prompt, a token id out of range.
            NotFoundError: no such adapter; a text, but no tokenizer.

        """
        self._use_vocabulary()
        ids = self._prompt_ids(prompt)
        options = GenerationOptions(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop,
            adapter=adapter,
        )
        pieces = Stream(self._start(ids, options))
        return pieces if stream else "".join(pieces)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = ...,
        template: str | None = ...,
        template_variables: Mapping[str, Any] | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> str: ...
    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        template: str | None = ...,
        template_variables: Mapping[str, Any] | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> Stream: ...
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str | Stream:
        """The assistant's answer to a conversation, written as the checkpoint's own chat template says.

        Args:
            messages: [{"role": "user", "content": "What is gravity?"}, ...]; the roles are those of the template.
            stream: as in :meth:`generate`.
            template: name of a template, where the checkpoint has several.
            template_variables: further variables of the template, such as ``{"enable_thinking": False}``.
            options: the other keywords of :meth:`generate`.

        """
        text = self.render_chat(messages, template=template, template_variables=template_variables)
        ids = self.tokenizer.encode(text, add_special_tokens=False)  # the template has written them
        pieces = self.generate(ids, stream=True, **options)
        return pieces if stream else "".join(pieces)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text that :meth:`chat` continues."""
        return render(
            self.tokenizer.settings,
            messages,
            add_generation_prompt=add_generation_prompt,
            template=template,
            variables=template_variables,
        )

    @overload
    def generate_tokens(
        self, prompt: Prompt, *, stream: Literal[False] = ..., **options: Unpack[GenerationOptions]
    ) -> list[int]: ...
    @overload
    def generate_tokens(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerationOptions]
    ) -> Iterator[int]: ...
    def generate_tokens(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[GenerationOptions]
    ) -> list[int] | Iterator[int]:
        """Like :meth:`generate`, but gives token ids; needs no tokenizer for a prompt of ids without ``stop``.

        The id that ends the text isn't part of the result. ``stream=True`` returns an iterator of ids.
        """
        unknown = set(options) - GenerationOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"generate_tokens() got an unexpected keyword argument {min(unknown)!r}")
        if options.get("stop"):
            self._use_vocabulary()
        generation = self._start(self._prompt_ids(prompt), options)
        if stream:
            return token_iterator(generation)
        while generation.step():
            pass
        return generation.tokens

    def _use_vocabulary(self) -> None:
        """Give the core the bytes of each token, once."""
        with self._lock:
            if not self._vocabulary_set:
                # The model's table may be padded beyond the tokenizer.
                self._engine.set_vocabulary(self.tokenizer.vocabulary_pieces(self._facts["vocab_size"]))
                self._vocabulary_set = True

    def _prompt_ids(self, prompt: Prompt) -> NDArray[np.int32]:
        ids = token_ids("generate: prompt", self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        if ids.size == 0:
            raise InvalidArgumentError("generate: the prompt is empty: there is no token to continue")
        return ids

    def _stop_ids(self) -> tuple[int, ...]:
        try:
            return self.tokenizer.stop_ids
        except (NotFoundError, UnsupportedError):  # ids in, ids out: no tokenizer is needed
            if self._facts["format"] != "gguf":
                return config_stop_ids(self._folder)
            end = _core.Checkpoint(str(self._path)).metadata("tokenizer.ggml.eos_token_id")
            return () if end is None else (int(end),)

    def _start(self, ids: NDArray[np.int32], options: GenerationOptions) -> _core.Generation:
        sampling = sampling_options(options)
        return self._engine.generate(
            ids,
            whole("max_tokens", options.get("max_tokens", 256)),
            **sampling,
            stop=stop_texts(options),
            stop_tokens=self._stop_ids(),
            adapter=mix(options.get("adapter")),
        )
