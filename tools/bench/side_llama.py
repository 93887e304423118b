"""llama.cpp through the C functions that llama-cpp-python exposes."""

from __future__ import annotations

import ctypes
import importlib.metadata

import llama_cpp
import numpy as np
from numpy.typing import NDArray
from side import Floats, Side, Tokens


class LlamaCpp(Side):
    """A GGUF file. Settings are llama.cpp's own defaults, but for the sizes and the threads."""

    def __init__(self, path: str, threads: int, adapter: str | None = None) -> None:
        self.version = importlib.metadata.version("llama-cpp-python")
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        # All of the file but a table of embeddings that is not the output layer as well (Q4_0: 18 bytes for 32 values).
        self.weight_bytes = int(llama_cpp.llama_model_size(self.model))
        table = self.vocab * llama_cpp.llama_model_n_embd(self.model) // 32 * 18
        self.weight_bytes -= table if "8b" in path else 0
        self.threads = threads
        self.adapter = None
        self.contexts: dict[int, ctypes.c_void_p] = {}
        if adapter is not None:
            self.adapter = llama_cpp.llama_adapter_lora_init(self.model, adapter.encode())
            if not self.adapter:
                raise RuntimeError(f"llama.cpp can't load {adapter}")

    def context(self, sequences: int) -> ctypes.c_void_p:
        """One for each number of sequences, with an empty cache."""
        if sequences not in self.contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx = 1024 * max(1, sequences // 4)
            params.n_batch = 2048
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.threads
            context = llama_cpp.llama_init_from_model(self.model, params)
            if not context:
                raise RuntimeError("llama.cpp can't make a context")
            if self.adapter:
                self.attach(context)
            self.contexts[sequences] = context
        context = self.contexts[sequences]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        return context

    def attach(self, context: ctypes.c_void_p) -> None:
        if hasattr(llama_cpp, "llama_set_adapters_lora"):
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapter)
            failed = llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
        else:
            failed = llama_cpp.llama_set_adapter_lora(context, self.adapter, 1.0)
        if failed:
            raise RuntimeError("llama.cpp can't attach the adapter")

    def run(self, context: ctypes.c_void_p, tokens: NDArray[np.int32], first: int, every: bool) -> Floats:
        """Tokens [sequences, n] from position `first` on; the logits of the last of each, or of all."""
        count, length = tokens.shape
        batch = llama_cpp.llama_batch_init(count * length, 0, 1)
        try:
            batch.n_tokens = count * length
            for s in range(count):
                for i in range(length):
                    row = s * length + i
                    batch.token[row], batch.pos[row] = int(tokens[s, i]), first + i
                    batch.n_seq_id[row], batch.seq_id[row][0] = 1, s
                    batch.logits[row] = every or i == length - 1
            code = llama_cpp.llama_decode(context, batch)
            if code:
                raise RuntimeError(f"llama_decode: {code}")
            rows = count * length if every else count
            pointer = llama_cpp.llama_get_logits(context)
            return np.ctypeslib.as_array(pointer, (rows, self.vocab))
        finally:
            llama_cpp.llama_batch_free(batch)

    def prefill(self, tokens: Tokens) -> None:
        self.run(self.context(1), tokens[None, :], 0, False)

    def start(self, prompts: NDArray[np.int32]) -> None:
        self.used = prompts.shape[1]
        self.active = self.context(len(prompts))
        self.run(self.active, prompts, 0, False)

    def step(self, tokens: Tokens) -> Floats:
        self.used += 1
        return self.run(self.active, tokens[:, None], self.used - 1, False)

    def logits(self, tokens: Tokens) -> Floats:
        return self.run(self.context(1), tokens[None, :], 0, True).copy()
