"""Example texts whose reconstruction can be followed latent by latent."""

from __future__ import annotations

from typing import Any

import torch

from hsae_lens.evaluation.frontier.errors import token_errors
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations, input_device, logits_with
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.normalization import joined_heads

PREDICTIONS = 3  # next tokens shown for each budget


@torch.no_grad()
def token_walkthroughs(
    sae: HierarchicalTopKSAE, model: HookedModel, tokens: torch.Tensor, n_latents: int = 32
) -> list[dict[str, Any]]:
    """What a reader needs to follow each token of some sequences through the budgets.

    Args:
        tokens: int64 ``[n_sequences, context_size]``.
        n_latents: how many of a token's latents to name.

    Returns:
        Per sequence, ready for JSON: ``tokens`` (their text), ``judged`` (False at positions the
        SAE was not trained on, which are left as they are), ``explained`` ``[token][k]`` for
        k = 0..K (1 − ‖x−x̂‖²/‖x−mean x‖², which may be negative), ``latents`` ``[token][rank]`` as
        [latent, activation], ``budgets``, and ``predictions`` ``[budget][token]``: the model's most
        likely next tokens as [text, probability] with every judged position reconstructed at that
        budget; the last entry is the model itself.
    """
    return [_walkthrough(sae, model, tokens[n : n + 1], n_latents) for n in range(len(tokens))]


def _walkthrough(
    sae: HierarchicalTopKSAE, model: HookedModel, row: torch.Tensor, n_latents: int
) -> dict[str, Any]:
    row = row.to(input_device(model))
    hook_name = sae.cfg.metadata.hook_name
    acts = hook_activations(model, row, hook_name)
    x = acts.flatten(2)[0].float()
    keep = TokenMask.from_sae(sae, model)(row, x[None])[0]
    errors, _ = token_errors(sae, x, progress=False)
    centre = x[keep].mean(0) if keep.any() else x.mean(0)
    distance = (x - centre).square().sum(-1).clamp(min=1e-12).cpu()
    code = sae.encode_joined(x)
    named = code.prefix(min(n_latents, sae.cfg.k))
    budgets = powers_of_two(sae.cfg.k)
    predictions = []
    with joined_heads(sae):
        reconstructions = list(sae.each_budget(code, budgets))
    for x_hat in reconstructions:
        new = torch.where(keep[:, None], x_hat.to(x.device), x).to(acts.dtype).reshape(acts.shape)
        predictions.append(_likely_next_tokens(model, row, hook_name, new))
    predictions.append(_likely_next_tokens(model, row, hook_name, acts))
    return {
        "tokens": [model.tokenizer.decode([token]) for token in row[0].tolist()],
        "judged": keep.tolist(),
        "explained": _rounded(1 - errors / distance[:, None], 3),
        "latents": [
            [[int(i), round(float(v), 2)] for i, v in zip(*latents, strict=True)]
            for latents in zip(named.indices.tolist(), named.values.tolist(), strict=True)
        ],
        "budgets": budgets,
        "predictions": predictions,
    }


def _likely_next_tokens(
    model: HookedModel, row: torch.Tensor, hook_name: str, new: torch.Tensor
) -> list[list[list[Any]]]:
    top = logits_with(model, row, hook_name, new)[0].float().softmax(-1).topk(PREDICTIONS)
    return [
        [[model.tokenizer.decode([i]), round(p, 3)] for p, i in zip(values, ids, strict=True)]
        for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _rounded(matrix: torch.Tensor, digits: int) -> list[list[float]]:
    return [[round(value, digits) for value in row] for row in matrix.tolist()]
