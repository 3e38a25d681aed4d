"""How long the demo takes on this machine, and how much text it therefore reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations
from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

LEAST_SHARE = 0.4
"""Of the text: with less, the SAEs learn it by heart and the picture is another one."""

TIMED_SEQUENCES = 16

OVERHEAD = 1.15  # loading, shuffling and logging, beside what is timed


@dataclass(frozen=True)
class Speed:
    """What was measured: seconds for a token up to the hook, for one through the whole model, and
    for a training step.
    """

    collect: float
    predict: float
    step: float


@dataclass(frozen=True)
class DemoPlan:
    """How many tokens are read to train on and to judge on, and the seconds each part takes."""

    train_tokens: int
    eval_tokens: int
    collecting: float
    training: float
    judging: float

    @property
    def seconds(self) -> float:
        return self.collecting + self.training + self.judging

    def __str__(self) -> str:
        return (
            f"About {max(1, round(self.seconds / 60))} min from here: {self.collecting:.0f} s "
            f"collecting activations, {self.training:.0f} s training, {self.judging:.0f} s judging."
        )


def plan_demo(
    speed: Speed, train_tokens: int, eval_tokens: int, steps: int, passes: int, seconds: float
) -> DemoPlan:
    """All of the text if it fits into ``seconds``, else the same share of both parts of it.

    Never less than :data:`LEAST_SHARE`: a machine that needs longer for that is told so.

    Args:
        train_tokens, eval_tokens: what there is, or was asked for.
        steps: of training, all SAEs together; not cut, because they decide what is learnt.
        passes: of the held-out tokens through the model.
    """
    training = OVERHEAD * steps * speed.step
    collecting = OVERHEAD * train_tokens * speed.collect
    judging = OVERHEAD * eval_tokens * speed.predict * passes
    share = min(1.0, max(LEAST_SHARE, (seconds - training) / (collecting + judging)))
    return DemoPlan(
        int(share * train_tokens),
        int(share * eval_tokens),
        share * collecting,
        training,
        share * judging,
    )


def measure_speed(
    model: HookedModel,
    tokens: torch.Tensor,
    hook_name: str,
    sae_config: HierarchicalTopKTrainingSAEConfig,
    batch_size: int,
) -> Speed:
    """Times a batch of tokens ``[n, context]`` and some training steps; takes a few seconds."""
    tokens = tokens[:TIMED_SEQUENCES]
    with torch.no_grad():
        collect = _seconds(lambda: hook_activations(model, tokens, hook_name))
        predict = _seconds(lambda: model(tokens.to(sae_config.device), prepend_bos=False))
    return Speed(
        collect / tokens.numel(), predict / tokens.numel(), _step_seconds(sae_config, batch_size)
    )


def _step_seconds(config: HierarchicalTopKTrainingSAEConfig, batch_size: int) -> float:
    sae = HierarchicalTopKTrainingSAE(config)
    optimizer = torch.optim.Adam(sae.parameters(), fused=True)
    x = torch.randn(batch_size, config.d_in, generator=torch.Generator().manual_seed(0))
    step_input = TrainStepInput(x.to(config.device), {}, None, 1, False)

    def step() -> None:
        sae.training_forward_pass(step_input).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _seconds(step)


def _seconds(work: Callable[[], Any]) -> float:
    """The faster of two runs after one that warms up."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
