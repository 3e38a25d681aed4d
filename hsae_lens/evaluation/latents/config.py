"""The settings of ``hsae latents``: a field is a flag, its docstring the flag's help."""

from __future__ import annotations

from dataclasses import dataclass

from hsae_lens.models.devices import AUTO


@dataclass
class LatentsConfig:
    """What ``hsae latents`` takes beside the SAE and its latents; every field is a flag."""

    text: str | None = None
    """A local text, JSONL, CSV or parquet file, or a folder of them. None is CPython's own language
    reference."""
    tokens: int = 16384
    """About how many tokens to look at."""
    model: str | None = None
    """What to open: a hub name, a local folder, or smollm2-135m. None is what the SAE says it was
    trained on."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""
    out: str = "latents.html"
    """The page to write."""
