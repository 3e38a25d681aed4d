"""Tokens per second at the shape of Gemma-2 2B, the language model in the loop."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.problems import Shape
from benchmarks.session import Session
from benchmarks.timing import interleaved

WHAT = "tokens/s at the Gemma-2 2B shape"
LAYERS = 13  # of 26: up to layer 12's residual stream
FULL = Shape(4096, 2304, 65536, 64)
TINY = Shape(8, 16, 32, 4)
SIZES: dict[str, Any] = {
    "vocab_size": 256000,
    "intermediate_size": 9216,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
TINY_SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "intermediate_size": 64,
    "head_dim": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def gemma(run: Session) -> list[dict[str, Any]]:
    """The model alone, our training step alone on its activations, and both in turn.

    The model has Gemma-2 2B's sizes and random weights, and attention as transformers chooses it:
    the plain one, for only that has Gemma-2's soft caps.
    """
    if not all(map(importlib.util.find_spec, ("transformers", "sae_lens"))):
        run.leave_out(WHAT, "needs transformers and SAELens (pip install -e .)")
        return []
    if not run.has_time(WHAT, 20.0):
        return []
    shape, context = (TINY, 4) if run.dry else (FULL, 1024)
    times = interleaved(_calls(shape, context, run), run.rounds, run.device)
    row: dict[str, Any] = {"shape": vars(shape), "context": context}
    for name, timing in times.items():
        rate = shape.tokens / timing.median
        row[name] = {**timing.to_json(), "tokens_per_s": float(f"{rate:.4g}")}
        print(f"{name:6s} {1e3 * timing.median:9.1f} ms {rate:9.0f} tokens/s")
    return [row]


def _calls(shape: Shape, context: int, run: Session) -> dict[str, Callable[[], Any]]:
    from benchmarks.subjects import trainer

    model = _model(shape, context, run)
    made = trainer("ours", shape, run.device)
    size = (shape.tokens // context, context)
    tokens = torch.randint(model.config.vocab_size, size, device=run.device)

    def activations() -> torch.Tensor:
        with torch.no_grad():
            hidden = model(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden.reshape(shape.tokens, shape.d_in).float()

    def step(x: torch.Tensor) -> Any:
        output = made.step(x)
        made.n_training_steps += 1
        return output

    fixed = activations()
    return {
        "model": activations,
        "step": lambda: step(fixed),
        "both": lambda: step(activations()),
    }


def _model(shape: Shape, context: int, run: Session) -> Any:
    """The first layers without the norm after the last: it gives the residual stream."""
    from transformers import AutoModel, Gemma2Config

    config = Gemma2Config(
        hidden_size=shape.d_in,
        num_hidden_layers=2 if run.dry else LAYERS,
        max_position_embeddings=max(context, 256),
        **(TINY_SIZES if run.dry else SIZES),
    )
    torch.manual_seed(0)
    with torch.device(run.device):
        dtype = torch.float32 if run.dry else torch.bfloat16
        model = AutoModel.from_config(config, dtype=dtype)
    model.norm = torch.nn.Identity()
    return model.eval()
