"""What the full run takes, from what the pilot measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.pilot.search import PilotSettings

FLOAT = 4  # bytes

COPIES = 4  # of the SAE's parameters: themselves, gradients, Adam's two moments

DENSE_TENSORS = (
    3  # tensors [batch, d_sae] of a step: pre-activations, their selection, the gradient
)

STORED_PROMPTS = 32  # the recipe's store_batch_size_prompts

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
    batch_size: int
    model_seconds: float
    sae_seconds: float
    memory: dict[str, int]
    file_bytes: int

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch_size)

    @property
    def seconds(self) -> float:
        return self.model_seconds + self.sae_seconds

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


def full_run(
    settings: PilotSettings,
    model: HookedModel,
    d_in: int,
    *,
    tokens: int,
    batch_size: int,
    context_size: int,
    model_rate: float,
    step_seconds: float,
    libraries: int,
) -> FullRun:
    """The cost of a run on this machine, at the rates that were measured here.

    Args:
        model_rate: tokens per second of the model up to the hook.  step_seconds: of a training step
            of ``batch_size`` tokens.  libraries: bytes that the process has before it opens a
            model (:func:`peak_memory`).
    """
    parameters = settings.d_sae * (2 * d_in + 1) + d_in
    memory = {
        "Python, PyTorch and other libraries": libraries,
        "the SAE, its gradients and Adam": COPIES * FLOAT * parameters,
        "the language model": sum(p.numel() * p.element_size() for p in model.parameters()),
        "activations waiting to be mixed": (
            FLOAT * d_in * context_size * (mixed_sequences(context_size) + STORED_PROMPTS)
        ),
        "a step's pre-activations": DENSE_TENSORS * FLOAT * batch_size * settings.d_sae,
    }
    return FullRun(
        tokens=tokens,
        batch_size=batch_size,
        model_seconds=tokens / model_rate,
        sae_seconds=tokens / batch_size * step_seconds,
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
