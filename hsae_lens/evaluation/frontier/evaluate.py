"""The frontier: reconstruction and model behaviour at every budget, on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens._util.tables import by_sae
from hsae_lens.evaluation.checks import budgets_of, check_same_hook
from hsae_lens.evaluation.frontier.metrics import (
    FrontierSums,
    TokenMetric,
    TokenSums,
    check_groups,
    cross_entropies,
    kl_divergences,
)
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import (
    hook_activations,
    input_device,
    logits_with,
    run_changed,
    sequences_at_once,
)
from hsae_lens.models.token_mask import TokenMask, longest_activation
from hsae_lens.models.tokenizing import sequences_of
from hsae_lens.objective.budgets import Budget
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.codes import each_reconstruction, largest_budget
from hsae_lens.sae.normalization import joined_heads


@torch.no_grad()
def evaluate_budgets(
    sae: SAE[Any],
    model: HookedModel,
    tokens: torch.Tensor | Dataset,
    budgets: Sequence[Budget] | None = None,
    *,
    mask: TokenMask | None = None,
    cross_entropy: bool = True,
    bootstrap: int = 0,
    documents: torch.Tensor | None = None,
    metrics: Mapping[str, TokenMetric] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluates an SAE at every budget on the same tokens; one clean and one ablated pass in all.

    Definitions are SAELens' ``run_evals``'. Special tokens (BOS, EOS, PAD, …), positions and
    norms outside ``mask`` are left out of every mean and keep their activation when the
    reconstruction is spliced in.

    Args:
        sae: a HierarchicalTopK SAE, or any SAE with a ``k``: it is then truncated to its largest
            activations at each budget.
        model: a hooked model with the hook ``sae.cfg.metadata.hook_name``.
        tokens: int64 ``[n_sequences, context_size]``, or a data set with a column ``text``,
            ``tokens`` or ``input_ids``: it is cut into sequences of the SAE's context size, and
            ``documents`` come from it.
        budgets: ascending within 1..k; None for 1, 2, 4, … k. :class:`MeanBudget` and
            :class:`ErrorTarget` may be among them, of a hierarchical SAE that is calibrated.
        mask: which tokens to judge; None for those the SAE was trained on (its metadata). Another:
            ``TokenMask.from_model(model, slice(2, None), max_norm=500)``.
        cross_entropy: whether to splice the reconstruction into the model; without it only the
            layers up to the hook are run, once.
        bootstrap: how many resamples to take for the standard errors; 0 for none.
        documents: int64 ``[n_sequences]``, which document each sequence is of: resampled together.
            None for every sequence on its own.
        metrics: columns of your own, for example ``{"largest_miss": lambda x, x_hat: (x -
            x_hat).abs().amax(-1)}``: activations and reconstructions ``[n, d_in]`` in, a finite
            number per token out, averaged over tokens.
        batch_size: sequences per forward pass; None for 16, or fewer where their logits would take
            more than half a gigabyte (two such tensors are held at once).

    Returns:
        One row per budget:

        - ``k``; with budgets that are not fixed ``rule`` ("fixed", "mean", "error") and ``target``
          (the number asked for, or the share of error); of an error target ``k`` is K;
        - ``tokens`` (judged), ``l0`` (mean active latents);
        - ``explained_variance`` (1 − Σ‖x−x̂‖² / Σ‖x−mean x‖², pooled over tokens and dimensions),
          ``fvu`` (1 − that), ``adds`` (what the k-th latent adds to it, of fixed budgets);
        - ``mse`` (mean over tokens of ‖x−x̂‖², summed over d_in), ``cosine`` and ``l2_ratio``
          (‖x̂‖/‖x‖), means over tokens;
        - with ``cross_entropy``: ``ce_score`` ((ablated − with SAE) / (ablated − clean)),
          ``ce_with_sae``, ``ce_clean``, ``ce_ablated`` (nats per token; ablated is zero), ``kl``
          (of the clean next-token distribution from the spliced one, nats per token);
        - with ``bootstrap``: ``explained_variance_se`` and ``ce_score_se``, and ``…_se`` of each
          of ``metrics``;
        - ``dead`` and ``dense``: the share of latents that no token, and that more than a tenth of
          the tokens, used within this budget.

    Raises:
        ValueError: for bad budgets, no model, a data set without such a column or with too little
            text, a hook the model lacks, a width that does not match, no token left to judge, too
            few sequences for a standard error, SAEs attached to the model, a transcoder, an error
            term left on (it would make every budget perfect), or a metric whose name is taken or
            that does not give a finite number per token.
        FloatingPointError: if activations of tokens that count, or the model's own losses at them,
            are NaN or infinite. What special tokens hold (they may overflow in float16) is not
            judged.
    """
    table = evaluate_saes(
        {"The SAE": sae},
        model,
        tokens,
        budgets,
        mask=mask,
        cross_entropy=cross_entropy,
        bootstrap=bootstrap,
        documents=documents,
        metrics=metrics,
        batch_size=batch_size,
        progress=progress,
    )
    return table.drop(columns="sae")


@torch.no_grad()
def evaluate_saes(
    saes: Mapping[str, SAE[Any]],
    model: HookedModel,
    tokens: torch.Tensor | Dataset,
    budgets: Sequence[Budget] | Mapping[str, Sequence[Budget]] | None = None,
    *,
    mask: TokenMask | None = None,
    cross_entropy: bool = True,
    bootstrap: int = 0,
    documents: torch.Tensor | None = None,
    metrics: Mapping[str, TokenMetric] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """:func:`evaluate_budgets` of several SAEs of one hook, which share clean and ablated passes.

    Each gets the figures that it would get alone; memory does not grow with their number.

    Args:
        saes: by the name that stands in the table. All are judged on the same tokens: where
            ``mask`` or the context size are not given, the first SAE's.
        budgets: for all, or by name; None for 1, 2, 4, … k of each.

    Returns:
        The rows of all, a column ``sae`` first.

    Raises:
        ValueError: as there, and for SAEs of several hooks or widths.
    """
    check_same_hook(saes)
    asked = budgets if isinstance(budgets, Mapping) else dict.fromkeys(saes, budgets)
    if missing := [name for name in saes if name not in asked]:
        raise ValueError(f"There are no budgets for {missing[0]}, only for {', '.join(asked)}.")
    resolved = {name: budgets_of(sae, asked[name], name) for name, sae in saes.items()}
    first = next(iter(saes.values()))
    if model is None:
        raise ValueError("Tokens and text need a model; without one use evaluate_activations.")
    if not isinstance(tokens, torch.Tensor):
        context = first.cfg.metadata.context_size
        tokens, own = sequences_of(tokens, model.tokenizer, context, progress)
        documents = own if documents is None else documents
    documents, n_groups = _group_rows(documents, len(tokens), bootstrap)
    shared = TokenSums(n_groups, first.cfg.d_in)
    sums = {
        name: FrontierSums(shared, resolved[name], largest_budget(sae), sae.cfg.d_sae, metrics)
        for name, sae in saes.items()
    }
    mask = mask or TokenMask.from_sae(first, model)
    frontier = _ModelFrontier(
        [(sae, sums[name]) for name, sae in saes.items()], model, mask, cross_entropy
    )
    batch_size = batch_size or sequences_at_once(model, tokens.shape[1])
    batches = zip(tokens.split(batch_size), documents.split(batch_size), strict=True)
    n_batches = -(-len(tokens) // batch_size)
    for batch, groups in tqdm(batches, "Evaluating", n_batches, disable=not progress):
        frontier.add(batch.to(input_device(model)), groups)
    return by_sae([own.table(bootstrap).assign(sae=name) for name, own in sums.items()])


@torch.no_grad()
def evaluate_activations(
    sae: SAE[Any],
    activations: torch.Tensor,
    budgets: Sequence[Budget] | None = None,
    *,
    max_norm: float | None = None,
    bootstrap: int = 0,
    documents: torch.Tensor | None = None,
    metrics: Mapping[str, TokenMetric] | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> pd.DataFrame:
    """:func:`evaluate_budgets` without a model: for activations ``[n_tokens, d_in]`` at hand.

    Args:
        documents: int64 ``[n_tokens]``, for ``bootstrap``: which document each token is of. None
            for every token on its own, which is right only if they were drawn one by one.
        batch_size: tokens at a time.

    Returns:
        The table without the columns that need a model.
    """
    return activation_sums(
        sae,
        activations,
        budgets,
        max_norm=max_norm,
        bootstrap=bootstrap,
        documents=documents,
        metrics=metrics,
        batch_size=batch_size,
        progress=progress,
    ).table(bootstrap)


@torch.no_grad()
def activation_sums(
    sae: SAE[Any],
    activations: torch.Tensor,
    budgets: Sequence[Budget] | None = None,
    *,
    max_norm: float | None = None,
    bootstrap: int = 0,
    documents: torch.Tensor | None = None,
    metrics: Mapping[str, TokenMetric] | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> FrontierSums:
    """What :func:`evaluate_activations` makes its table of: sums over tokens, by document.

    They are kept apart by document where ``bootstrap`` asks for standard errors, so that two SAEs
    can be compared document by document.
    """
    resolved = budgets_of(sae, budgets)
    if not isinstance(activations, torch.Tensor):
        raise ValueError(
            f"evaluate_activations judges activations [n_tokens, d_in], got a "
            f"{type(activations).__name__}. Text needs a model: evaluate_budgets."
        )
    _check_width(activations, sae, "activations")
    documents, n_groups = _group_rows(documents, len(activations), bootstrap)
    shared = TokenSums(n_groups, sae.cfg.d_in)
    sums = FrontierSums(shared, resolved, largest_budget(sae), sae.cfg.d_sae, metrics)
    limit = max_norm or longest_activation(sae)
    batches = zip(activations.split(batch_size), documents.split(batch_size), strict=True)
    n_batches = -(-len(activations) // batch_size)
    for x, groups in tqdm(batches, "Evaluating", n_batches, disable=not progress):
        keep = ~(x.norm(dim=-1) > limit)  # as a TokenMask
        _check_finite(x[keep], "The activations")
        shared.add_activations(x[keep], groups[keep.cpu()])
        with joined_heads(sae):
            for _ in _add_reconstructions(sae, sums, x, keep, groups):
                pass
    return sums


def _group_rows(documents: torch.Tensor | None, n: int, bootstrap: int) -> tuple[torch.Tensor, int]:
    """The group of each of n rows and how many there are, checked before the work."""
    if n == 0:
        raise ValueError("No token is left to judge: there are none.")
    if documents is None:
        documents = torch.arange(n)
    if documents.shape != (n,):
        raise ValueError(
            f"documents must be [{n}], one for each row, got {tuple(documents.shape)}."
        )
    present, groups = documents.cpu().unique(return_inverse=True)  # numbers may have gaps
    check_groups(len(present), bootstrap)
    return (groups, len(present)) if bootstrap else (torch.zeros_like(groups), 1)


def _check_width(x: torch.Tensor, sae: SAE[Any], name: str) -> None:
    if x.shape[-1] != sae.cfg.d_in:
        raise ValueError(
            f"The SAE reads width d_in={sae.cfg.d_in}, but {name} has {x.shape[-1]}. Is it of "
            "another model or hook?"
        )


def _check_finite(counted: torch.Tensor, name: str) -> None:
    if not torch.isfinite(counted).all():
        raise FloatingPointError(f"{name} are not finite.")


class _ModelFrontier:
    """Runs the model and hands what it sees to the sums."""

    def __init__(
        self,
        saes: Sequence[tuple[SAE[Any], FrontierSums]],
        model: HookedModel,
        mask: TokenMask,
        splice: bool,
    ) -> None:
        self.saes, self.model, self.mask, self.splice = saes, model, mask, splice
        first, sums = saes[0]
        self.first, self.shared = first, sums.shared
        self.hook_name = str(first.cfg.metadata.hook_name)

    def add(self, tokens: torch.Tensor, documents: torch.Tensor) -> None:
        original, clean = self._clean_pass(tokens)
        x = original.flatten(2)  # attention heads joined
        _check_width(x, self.first, self.hook_name)
        keep = self.mask(tokens, x)
        _check_finite(x[keep], f"The model's activations at {self.hook_name}")
        groups = documents[:, None].expand(tokens.shape)
        self.shared.add_activations(x[keep], groups[keep.cpu()])
        predicting = keep[:, :-1]
        here = groups[:, :-1][predicting.cpu()]
        if clean is not None:  # the same for every SAE
            ablated = cross_entropies(self._logits(tokens, torch.zeros_like(original)), tokens)
            losses = cross_entropies(clean, tokens)[predicting]
            _check_finite(losses, "The model's own cross-entropies")
            self.shared.add("ce_clean", losses, here)
            self.shared.add("ce_ablated", ablated[predicting], here)
            self.shared.add("predictions", torch.ones(len(here)), here)
        for sae, sums in self.saes:
            for n, x_hat in _add_reconstructions(sae, sums, original, keep, groups):
                if clean is not None:
                    spliced = torch.where(keep[..., None], x_hat.to(x.dtype), x)
                    losses, kl = self._losses_with(tokens, spliced.reshape(original.shape), clean)
                    sums.add("ce_with_sae", n, losses[predicting], here)
                    sums.add("kl", n, kl[keep], groups[keep.cpu()])

    def _clean_pass(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The hook's activations and, if they will be spliced, the model's own logits."""
        if not self.splice:
            return hook_activations(self.model, tokens, self.hook_name), None
        seen: list[torch.Tensor] = []
        logits = run_changed(self.model, tokens, {self.hook_name: seen.append})
        return seen[0], logits

    def _losses_with(
        self, tokens: torch.Tensor, new: torch.Tensor, clean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropies with the hook set to ``new``, and KL from the clean predictions.

        The logits end here: no third tensor of their size is held beside these and the clean ones.
        """
        logits = self._logits(tokens, new)
        return cross_entropies(logits, tokens), kl_divergences(clean, logits)

    def _logits(self, tokens: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return logits_with(self.model, tokens, self.hook_name, new)


def _add_reconstructions(
    sae: SAE[Any],
    sums: FrontierSums,
    original: torch.Tensor,
    keep: torch.Tensor,
    groups: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Adds each budget's reconstruction to the sums, then yields it ``[..., d_in]``, one at a time.

    ``original`` is ``[..., d_in]``, or with heads to join ``[batch, context, n_heads, d_head]``.
    """
    x = original.flatten(keep.ndim)
    here, kept = groups[keep.cpu()], x[keep]
    fixed = sorted({j for k in sums.budgets if isinstance(k, int) for j in (k - 1, k)})
    wanted = [*fixed, *(budget for budget in sums.budgets if not isinstance(budget, int))]
    for j, code, x_hat in each_reconstruction(sae, original, keep, wanted):
        x_hat = x_hat.flatten(keep.ndim).to(x.device)
        # What the next latent adds starts from here.
        if isinstance(j, int) and j + 1 in sums.budgets:
            error = (kept.float() - x_hat[keep].float()).square().sum(-1)
            sums.add("square_error_before", sums.budgets.index(j + 1), error, here)
        if j in sums.budgets:
            n = sums.budgets.index(j)
            mine = keep.to(code.values.device)
            kept_code = OrderedCode(code.values[mine], code.indices[mine])
            sums.add_reconstruction(n, kept_code, kept, x_hat[keep], here)
            yield n, x_hat
