"""What the full run takes, from what the pilot measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.pilot.config import PilotConfig
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import PilotSettings

FLOAT = 4  # bytes

COPIES = 4  # of the SAE's parameters: themselves, gradients, Adam's two moments

DENSE_TENSORS = 3  # [batch, d_sae] in a step: pre-activations, their selection, the gradient

STORED_PROMPTS = 32  # the recipe's store_batch_size_prompts

WHILE_MIXING = 3  # times the activations that wait, where SAELens joins and shuffles them

MIXED_TOKENS = 131_072  # about so many are mixed before they are trained on


def mixed_sequences(context_size: int) -> int:
    """The recipe's n_batches_in_buffer: sequences whose tokens are mixed."""
    return max(STORED_PROMPTS, MIXED_TOKENS // context_size)


@dataclass(frozen=True)
class FullRun:
    """Hours and memory of a run of ``tokens`` tokens, with the language model in the loop.

    model_seconds, sae_seconds: what each takes.  memory: bytes by what holds them.  file_bytes:
    of the saved SAE, in float32.
    """

    tokens: int
    steps: int
    model_seconds: float
    sae_seconds: float
    memory: dict[str, int]
    file_bytes: int

    @property
    def seconds(self) -> float:
        return self.model_seconds + self.sae_seconds

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


def full_run(
    cfg: PilotConfig,
    settings: PilotSettings,
    model: HookedModel,
    look: Look,
    step_seconds: float,
    libraries: int,
) -> FullRun:
    """The cost of the full run on this machine, at the rates that were measured here.

    Args:
        step_seconds: of a training step.  libraries: bytes that the process has before it opens a
            model (:func:`peak_memory`).
    """
    tokens, d_in = cfg.training_tokens, look.d_in
    parameters = settings.d_sae * (2 * d_in + 1) + d_in
    memory = {
        "Python, PyTorch and other libraries": libraries,
        "the SAE, its gradients and Adam": COPIES * FLOAT * parameters,
        "the language model": sum(p.numel() * p.element_size() for p in model.parameters()),
        "activations while they are mixed": (
            WHILE_MIXING * FLOAT * d_in * cfg.context_size * mixed_sequences(cfg.context_size)
        ),
        "a step's pre-activations": DENSE_TENSORS * FLOAT * cfg.batch_size * settings.d_sae,
    }
    return FullRun(
        tokens=tokens,
        steps=cfg.full_steps,
        model_seconds=tokens / look.tokens_per_second,
        sae_seconds=tokens / cfg.batch_size * step_seconds,
        memory={what: n for what, n in memory.items() if n},
        file_bytes=FLOAT * parameters,
    )


def peak_memory() -> int:
    """The most bytes that this process has held so far; 0 on Windows, which does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
