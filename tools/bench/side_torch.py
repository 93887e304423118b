"""torch with transformers: in bfloat16, with bitsandbytes' NF4, with PEFT; and in float64, the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from side import Floats, Side, Tokens, pooled

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Torch(Side):
    """A folder as it is saved (its quantisation included), or a float one in `dtype`."""

    def __init__(
        self,
        path: str,
        threads: int,
        dtype: str = "bfloat16",
        encoder: bool = False,
        rank: int = 0,
        adapters: int = 1,
    ) -> None:
        """`rank` above 0: made LoRA of all linear layers; of several `adapters`, sequence i runs with the i-th."""
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.options: dict[str, Any] = {}
        self.version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        kind = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        self.model = kind.from_pretrained(path, dtype=getattr(torch, dtype), device_map="cpu").eval()
        if getattr(self.model, "is_quantized", False):
            import bitsandbytes  # noqa: PLC0415

            self.version += f", bitsandbytes {bitsandbytes.__version__}"
        if rank:
            import peft  # noqa: PLC0415

            config = peft.LoraConfig(
                r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0
            )
            self.model = peft.get_peft_model(self.model, config, "bench-0")
            names = [f"bench-{i}" for i in range(adapters)]
            for name in names[1:]:
                self.model.add_adapter(name, config)
            self.model.eval()
            if adapters > 1:
                self.options = {"adapter_names": names}
            self.version += f", peft {peft.__version__}"

    def prefill(self, tokens: Tokens) -> None:
        self.model(input_ids=torch.from_numpy(tokens)[None].long(), logits_to_keep=1)

    def start(self, prompts: NDArray[np.int32]) -> None:
        ids = torch.from_numpy(prompts).long()
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **self.options)
        self.cache = out.past_key_values

    def step(self, tokens: Tokens) -> Floats:
        ids = torch.from_numpy(tokens)[:, None].long()
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **self.options)
        self.cache = out.past_key_values
        values: Floats = out.logits[:, -1].float().numpy()
        return values

    def logits(self, tokens: Tokens) -> Floats:
        values: Floats = self.model(input_ids=torch.from_numpy(tokens)[None].long()).logits[0].double().numpy()
        return values

    def encode(self, tokens: NDArray[np.int32]) -> Floats:
        hidden = self.model(input_ids=torch.from_numpy(tokens).long()).last_hidden_state
        return pooled(hidden.to(torch.promote_types(hidden.dtype, torch.float32)).numpy())
