"""How much of a behaviour survives when the model goes on from k latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two, resolve_budgets
from hsae_lens.evaluation.frontier import each_reconstruction
from hsae_lens.evaluation.judged import Judged
from hsae_lens.models import hook_activations, input_device, logits_with
from hsae_lens.pairs import TokenizedTask
from hsae_lens.sae import largest_budget
from hsae_lens.tasks import TASKS, make_task

CHANCE = 0.5


@torch.no_grad()
def evaluate_tasks(
    sae: SAE[Any],
    model: Any,
    tasks: Sequence[str | TokenizedTask] | None = None,
    budgets: Sequence[int] | None = None,
    *,
    n: int = 64,
    judged: Judged | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The model's accuracy on small tasks with its activations replaced by k latents.

    A pair counts as solved if the right next token is likelier than the wrong one: chance is 0.5.

    Args:
        tasks: names from :data:`hsae_lens.tasks.TASKS`, or tokenized tasks; None for all of them.
        budgets: ascending within 1..k; None for 1, 2, 4, … k.
        n: pairs of each named task.
        judged: which positions are replaced; None for those the SAE was trained on.

    Returns:
        A row per task and budget: ``task``, ``k``, ``accuracy``, ``logit_diff`` (mean of right −
        wrong), ``model_accuracy``, ``model_logit_diff``, ``retention`` ((accuracy − 0.5) /
        (the model's − 0.5)) and ``logit_retention`` (logit_diff / the model's). Both retentions are
        NaN where the model itself is not better than guessing by two standard errors: there is
        nothing to retain.

    Raises:
        ValueError: for an unknown task, bad budgets, or a task whose last position is left as it is
            (the answer would be the model's own at every k).
    """
    largest = largest_budget(sae)
    resolved = resolve_budgets(budgets or powers_of_two(largest), largest)
    made = [
        make_task(task, model.tokenizer, n) if isinstance(task, str) else task
        for task in (TASKS if tasks is None else tasks)
    ]
    rows = []
    for task in tqdm(made, desc="Tasks", disable=not progress):
        tokens = task.clean.to(input_device(model))
        hook_name = sae.cfg.metadata.hook_name
        original = hook_activations(model, tokens, hook_name)
        keep = (judged or Judged.by(sae, model))(tokens, original.flatten(2))[..., None]
        if not keep[:, -1].all():
            raise ValueError(
                f"The last position of the task {task.name!r}, {tokens.shape[1] - 1}, is not one "
                "that the SAE replaces (its seqpos_slice and max_norm)."
            )
        want = _logit_diff(model, task, tokens, hook_name, original)
        accuracy = (want > 0).double().mean().item()
        able = better_than_guessing(accuracy, len(want)) and want.mean() > 0
        for k, _, x_hat in each_reconstruction(sae, original, 2, resolved):
            x = original.flatten(2)
            new = torch.where(keep, x_hat.flatten(2).to(x), x).reshape(original.shape)
            got = _logit_diff(model, task, tokens, hook_name, new)
            solved = (got > 0).double().mean().item()
            rows.append(
                {
                    "task": task.name,
                    "k": k,
                    "accuracy": solved,
                    "logit_diff": got.mean().item(),
                    "model_accuracy": accuracy,
                    "model_logit_diff": want.mean().item(),
                    "retention": (solved - CHANCE) / (accuracy - CHANCE) if able else float("nan"),
                    "logit_retention": (got.mean() / want.mean()).item() if able else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def _logit_diff(
    model: Any, task: TokenizedTask, tokens: torch.Tensor, hook_name: str, new: torch.Tensor
) -> torch.Tensor:
    """Right minus wrong logit at the last position ``[n]``, with the hook set to ``new``."""
    return task.metric(logits_with(model, tokens, hook_name, new)[:, -1:].double())


@torch.no_grad()
def check_able(task: TokenizedTask, model: Any, batch_size: int = 16) -> float:
    """The model's accuracy on the clean prompts; takes one pass over them.

    Raises:
        ValueError: if it is not better than guessing by two standard errors: there is then nothing
            to explain.
    """
    values = []
    for start in range(0, len(task), batch_size):
        batch = task[start : start + batch_size]
        values.append(batch.metric(model(batch.clean.to(input_device(model)), prepend_bos=False)))
    accuracy = (torch.cat(values) > 0).double().mean().item()
    if not better_than_guessing(accuracy, len(task)):
        raise ValueError(
            f"The model solves {accuracy:.0%} of the {len(task)} pairs of {task.name!r}, which "
            "guessing might do too: there is no behaviour to find a circuit for. Take another task "
            "or model, or more pairs."
        )
    return accuracy


def better_than_guessing(accuracy: float, n: int) -> bool:
    """Whether an accuracy on ``n`` two-way choices is above 0.5 by two standard errors."""
    return accuracy > CHANCE + 2 * (0.25 / n) ** 0.5
