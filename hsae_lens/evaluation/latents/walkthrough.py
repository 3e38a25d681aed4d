"""Example texts whose reconstruction can be followed latent by latent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hsae_lens.evaluation.frontier.errors import errors_of_code
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations, input_device, logits_with
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.objective.budgets import MeanBudget, powers_of_two
from hsae_lens.objective.ordered_code import OrderedCode
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
        budget; the last entry is the model itself. Where the SAE is calibrated also ``mean``, with
        ``lengths`` ``[token][k - 1]``: how many latents the token uses at the mean budget k = 1..K,
        none where it is not judged; and ``predictions`` at the mean budgets ``budgets``. A token
        may use more than K: ``explained`` and ``latents`` then reach as far.
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
    centre = x[keep].mean(0) if keep.any() else x.mean(0)
    distance = (x - centre).square().sum(-1).clamp(min=1e-12).cpu()
    code, lengths = _code_and_lengths(sae, x, keep)
    budgets = powers_of_two(sae.cfg.k)

    def predictions(reconstructions: Iterable[torch.Tensor]) -> list[Any]:
        spliced = [torch.where(keep[:, None], x_hat.to(x.device), x) for x_hat in reconstructions]
        return [
            _likely_next_tokens(model, row, hook_name, new.to(acts.dtype).reshape(acts.shape))
            for new in spliced
        ]

    with joined_heads(sae):
        at_fixed = list(sae.each_budget(code, budgets))
    of_model = _likely_next_tokens(model, row, hook_name, acts)
    reach = [max(sae.cfg.k, *of_token) for of_token in lengths.T.tolist()]
    example: dict[str, Any] = {
        "tokens": [model.tokenizer.decode([token]) for token in row[0].tolist()],
        "judged": keep.tolist(),
        "explained": _explained(errors_of_code(sae, x, code) / distance[:, None], reach),
        "latents": _named(code.prefix(min(n_latents, code.k)), reach),
        "budgets": budgets,
        "predictions": [*predictions(at_fixed), of_model],
    }
    if sae.cfg.calibration:
        at_mean = _at_lengths(sae, code, lengths[[k - 1 for k in budgets]])
        example["mean"] = {"lengths": lengths.T.tolist(), "predictions": predictions(at_mean)}
    return example


def _code_and_lengths(
    sae: HierarchicalTopKSAE, x: torch.Tensor, keep: torch.Tensor
) -> tuple[OrderedCode, torch.Tensor]:
    """The codes of tokens ``[n, d_in]``, and how many latents each uses at mean budgets ``[K, n]``.

    These are fixed budgets where the SAE is not calibrated. The code is as long as its longest use.
    """
    rule = MeanBudget if sae.cfg.calibration else int
    with joined_heads(sae):
        acts = x.to(sae.device, sae.dtype)
        return sae.encode_budgets(acts, [rule(k) for k in range(1, sae.cfg.k + 1)], keep)


def _at_lengths(
    sae: HierarchicalTopKSAE, code: OrderedCode, lengths: torch.Tensor
) -> list[torch.Tensor]:
    """Reconstructions from each token's own number of latents, for each row of ``lengths``."""
    codes = [code.prefixes(own) for own in lengths]
    with joined_heads(sae):
        return [next(sae.each_budget(code, [code.k])) for code in codes]


def _likely_next_tokens(
    model: HookedModel, row: torch.Tensor, hook_name: str, new: torch.Tensor
) -> list[list[list[Any]]]:
    top = logits_with(model, row, hook_name, new)[0].float().softmax(-1).topk(PREDICTIONS)
    return [
        [[model.tokenizer.decode([i]), round(p, 3)] for p, i in zip(values, ids, strict=True)]
        for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _explained(unexplained: torch.Tensor, reach: list[int]) -> list[list[float]]:
    """One minus each row's first shares, from none of the latents to ``reach`` of them."""
    rows = zip((1 - unexplained).tolist(), reach, strict=True)
    return [[round(share, 3) for share in row[: n + 1]] for row, n in rows]


def _named(code: OrderedCode, reach: list[int]) -> list[list[list[Any]]]:
    """Each token's first latents with their activations, no more than ``reach`` of them."""
    rows = zip(code.indices.tolist(), code.values.tolist(), reach, strict=True)
    return [
        [[i, round(v, 2)] for i, v in zip(ids[:n], values[:n], strict=True)]
        for ids, values, n in rows
    ]
