"""The frontier: reconstruction and model behaviour at every budget, on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two, resolve_budgets
from hsae_lens.evaluation.judged import Judged, longest
from hsae_lens.evaluation.metrics import FrontierSums, Metric, check_groups
from hsae_lens.models import hook_activations, input_device, run_changed
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.sae import HierarchicalTopKSAE, joined_heads, largest_budget
from hsae_lens.text import sequences_of


@torch.no_grad()
def evaluate_budgets(
    sae: SAE[Any],
    model: Any,
    tokens: torch.Tensor | Dataset,
    budgets: Sequence[int] | None = None,
    *,
    seqpos_slice: tuple[int | None, ...] | None = None,
    max_norm: float | None = None,
    cross_entropy: bool = True,
    bootstrap: int = 0,
    documents: torch.Tensor | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluates an SAE at every budget on the same tokens; one clean and one ablated pass in all.

    Definitions are SAELens' ``run_evals``'. Special tokens (BOS, EOS, PAD, …), positions outside
    ``seqpos_slice`` and activations longer than ``max_norm`` are left out of every mean and keep
    their activation when the reconstruction is spliced in.

    Args:
        sae: a HierarchicalTopK SAE, or any SAE with a ``k``: it is then truncated to its largest
            activations at each budget.
        model: a hooked model with the hook ``sae.cfg.metadata.hook_name``.
        tokens: int64 ``[n_sequences, context_size]``, or a data set with a column ``text``,
            ``tokens`` or ``input_ids``: it is cut into sequences of the SAE's context size, and
            ``documents`` come from it.
        budgets: ascending within 1..k; None for 1, 2, 4, … k.
        seqpos_slice: positions to judge; None for those the SAE was trained on (its metadata).
        max_norm: longest activation to judge: a few tokens park norms 50 times the usual there, and
            squared errors would see little else. None for the SAE's metadata, or no limit.
        cross_entropy: whether to splice the reconstruction into the model; without it only the
            layers up to the hook are run, once.
        bootstrap: how many resamples to take for the standard errors; 0 for none.
        documents: int64 ``[n_sequences]``, which document each sequence is of: resampled together.
            None for every sequence on its own.
        metrics: columns of your own, for example ``{"largest_miss": lambda x, x_hat: (x -
            x_hat).abs().amax(-1)}``: activations and reconstructions ``[n, d_in]`` in, a number per
            token out, averaged over tokens.
        batch_size: sequences per forward pass.

    Returns:
        One row per budget:

        - ``k``, ``tokens`` (judged), ``l0`` (mean active latents);
        - ``explained_variance`` (1 − Σ‖x−x̂‖² / Σ‖x−mean x‖², pooled over tokens and dimensions),
          ``fvu`` (1 − that), ``adds`` (what the k-th latent adds to it);
        - ``mse`` (mean over tokens of ‖x−x̂‖², summed over d_in), ``cosine`` and ``l2_ratio``
          (‖x̂‖/‖x‖), means over tokens;
        - with ``cross_entropy``: ``ce_score`` ((ablated − with SAE) / (ablated − clean)),
          ``ce_with_sae``, ``ce_clean``, ``ce_ablated`` (nats per token; ablated is zero), ``kl``
          (of the clean next-token distribution from the spliced one, nats per token);
        - with ``bootstrap``: ``explained_variance_se`` and ``ce_score_se``;
        - ``dead`` and ``dense``: the share of latents that no token, and that more than a tenth of
          the tokens, used within this budget.

    Raises:
        ValueError: for bad budgets, no model, a data set without such a column or with too little
            text, a hook the model lacks, a width that does not match, no token left to judge, too
            few sequences for a standard error, or an error term left on (it would make every
            budget perfect).
        FloatingPointError: if the model's activations hold NaN or infinity.
    """
    resolved = _resolve(sae, budgets)
    if model is None:
        raise ValueError("Tokens and text need a model; without one use evaluate_activations.")
    if not isinstance(tokens, torch.Tensor):
        context = sae.cfg.metadata.context_size
        tokens, own = sequences_of(tokens, model.tokenizer, context, progress)
        documents = own if documents is None else documents
    documents = _groups(documents, len(tokens), bootstrap)
    sums = FrontierSums(resolved, sae.cfg.d_in, sae.cfg.d_sae, int(documents.max()) + 1, metrics)
    judged = Judged.by(sae, model, seqpos_slice, max_norm)
    frontier = _ModelFrontier(sae, model, sums, judged, cross_entropy)
    batches = zip(tokens.split(batch_size), documents.split(batch_size), strict=True)
    n_batches = -(-len(tokens) // batch_size)
    for batch, groups in tqdm(batches, "Evaluating", n_batches, disable=not progress):
        frontier.add(batch.to(input_device(model)), groups)
    return sums.table(bootstrap)


@torch.no_grad()
def evaluate_activations(
    sae: SAE[Any],
    activations: torch.Tensor,
    budgets: Sequence[int] | None = None,
    *,
    max_norm: float | None = None,
    bootstrap: int = 0,
    documents: torch.Tensor | None = None,
    metrics: Mapping[str, Metric] | None = None,
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
    resolved = _resolve(sae, budgets)
    if not isinstance(activations, torch.Tensor):
        raise ValueError(
            f"evaluate_activations judges activations [n_tokens, d_in], got a "
            f"{type(activations).__name__}. Text needs a model: evaluate_budgets."
        )
    _check(activations, sae, "activations")
    documents = _groups(documents, len(activations), bootstrap)
    sums = FrontierSums(resolved, sae.cfg.d_in, sae.cfg.d_sae, int(documents.max()) + 1, metrics)
    limit = longest(sae, max_norm)
    batches = zip(activations.split(batch_size), documents.split(batch_size), strict=True)
    n_batches = -(-len(activations) // batch_size)
    for x, groups in tqdm(batches, "Evaluating", n_batches, disable=not progress):
        keep = x.norm(dim=-1) <= limit
        sums.add_tokens(x[keep], groups[keep.cpu()])
        with joined_heads(sae):
            for _ in _judged_reconstructions(sae, sums, x, keep, groups):
                pass
    return sums.table(bootstrap)


def _resolve(sae: SAE[Any], budgets: Sequence[int] | None) -> list[int]:
    if sae.use_error_term:
        raise ValueError("Turn use_error_term off: with it the output equals the input at every k.")
    largest = largest_budget(sae)
    return resolve_budgets(budgets or powers_of_two(largest), largest)


def _groups(documents: torch.Tensor | None, n: int, bootstrap: int) -> torch.Tensor:
    """The group of each of n rows, checked before the work rather than after it."""
    if n == 0:
        raise ValueError("No token is left to judge: there are none.")
    if documents is None:
        documents = torch.arange(n)
    if documents.shape != (n,):
        raise ValueError(
            f"documents must be [{n}], one for each row, got {tuple(documents.shape)}."
        )
    if not bootstrap:
        return torch.zeros(n, dtype=torch.int64)
    check_groups(len(documents.unique()))
    return documents


def _check(x: torch.Tensor, sae: SAE[Any], name: str) -> None:
    if x.shape[-1] != sae.cfg.d_in:
        raise ValueError(
            f"The SAE reads width d_in={sae.cfg.d_in}, but {name} has {x.shape[-1]}. Is it of "
            "another model or hook?"
        )
    if not torch.isfinite(x).all():
        raise FloatingPointError(f"{name} holds NaN or infinity.")


class _ModelFrontier:
    """Runs the model and hands what it sees to the sums."""

    def __init__(
        self, sae: SAE[Any], model: Any, sums: FrontierSums, judged: Judged, splice: bool
    ) -> None:
        self.sae, self.model, self.sums = sae, model, sums
        self.judged, self.splice = judged, splice
        self.hook_name: str = sae.cfg.metadata.hook_name
        if not self.hook_name:
            raise ValueError("sae.cfg.metadata.hook_name is not set: which hook is this SAE for?")

    def add(self, tokens: torch.Tensor, documents: torch.Tensor) -> None:
        original, clean = self._clean_pass(tokens)
        x = original.flatten(2)  # attention heads joined
        _check(x, self.sae, self.hook_name)
        keep = self.judged(tokens, x)
        groups = documents[:, None].expand(tokens.shape)
        self.sums.add_tokens(x[keep], groups[keep.cpu()])
        reconstructions = _judged_reconstructions(self.sae, self.sums, original, keep, groups)
        if clean is None:
            for _ in reconstructions:
                pass
            return
        losses = {
            "clean": _loss(clean, tokens),
            "ablated": _loss(self._log_probs(tokens, torch.zeros_like), tokens),
        }
        predicting = keep[:, :-1]
        here = groups[:, :-1][predicting.cpu()]
        for n, x_hat in reconstructions:
            spliced = torch.where(keep[..., None], x_hat.to(x.dtype), x).reshape(original.shape)
            with_sae = self._log_probs(tokens, _always(spliced))
            losses["with_sae"] = _loss(with_sae, tokens)
            for name, loss in losses.items():
                self.sums.add(f"ce_{name}", n, loss[predicting], here)
            self.sums.add("predictions", n, torch.ones(len(here)), here)
            self.sums.add("kl", n, _kl(clean, with_sae)[keep], groups[keep.cpu()])

    def _clean_pass(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The hook's activations and, if they will be spliced, the model's own predictions."""
        if not self.splice:
            return hook_activations(self.model, tokens, self.hook_name), None
        seen: list[torch.Tensor] = []
        clean = self._log_probs(tokens, seen.append)
        return seen[0], clean

    def _log_probs(
        self, tokens: torch.Tensor, change: Callable[[torch.Tensor], Any]
    ) -> torch.Tensor:
        """Next-token log-probabilities with the hook's activations changed (None: left as is)."""
        return run_changed(self.model, tokens, {self.hook_name: change}).float().log_softmax(-1)


def _loss(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each next token ``[batch, context - 1]``."""
    return -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)


def _kl(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(clean ‖ other) at each position, a sequence at a time to spare memory."""
    rows = zip(clean, other, strict=True)
    return torch.stack([(p.exp() * (p - q)).sum(-1) for p, q in rows])


def _always(value: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _: value


def _judged_reconstructions(
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
    wanted = sorted({j for k in sums.budgets for j in (k - 1, k)})
    for j, code, x_hat in each_reconstruction(sae, original, keep.ndim, wanted):
        x_hat = x_hat.flatten(keep.ndim).to(x.device)
        if j + 1 in sums.budgets:  # what the next latent adds starts from here
            error = (kept.float() - x_hat[keep].float()).square().sum(-1)
            sums.add("square_error_before", sums.budgets.index(j + 1), error, here)
        if j in sums.budgets:
            n = sums.budgets.index(j)
            mine = keep.to(code.values.device)
            judged = OrderedCode(code.values[mine], code.indices[mine])
            sums.add_reconstruction(n, judged, kept, x_hat[keep], here)
            yield n, x_hat


def each_reconstruction(
    sae: SAE[Any], original: torch.Tensor, batch_dims: int, budgets: list[int]
) -> Iterator[tuple[int, OrderedCode, torch.Tensor]]:
    """(budget, its ordered code, x̂) for ascending budgets, 0 included, never two at a time."""
    joined = original if sae.hook_z_reshaping_mode else original.flatten(batch_dims)
    sae_in = joined.to(sae.device)
    if isinstance(sae, HierarchicalTopKSAE):
        code = sae.encode_ordered(sae_in)
        for j, x_hat in zip(budgets, sae.each_budget(code, budgets), strict=True):
            yield j, code.prefix(max(1, j)), x_hat
        return
    for j in budgets:
        # Encoded for every budget: some normalisations are undone by one decode only.
        acts = sae.encode(sae_in)
        code = OrderedCode.from_pre_activations(acts, max(1, j))
        yield j, code, sae.decode(code.to_dense(sae.cfg.d_sae) if j else torch.zeros_like(acts))
