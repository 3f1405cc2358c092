"""A small network of the transformers package; tests that use it skip without the package."""

from __future__ import annotations

from typing import Any

import torch


def small_llama(seed: int = 0, **change: object) -> Any:
    """A Llama with one layer of 16, 4 heads and 2 key heads, whose norms have gains that are not 1.

    Args:
        seed: Of its weights.
        **change: Other entries of its ``LlamaConfig``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    measures = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**measures, **change})).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model
