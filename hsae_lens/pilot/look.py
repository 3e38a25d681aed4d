"""A look at a hook's activations before anything is trained on them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.comparison.material import OUTLIER
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations, run_changed, sequences_at_once
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.training.positions import leading_outliers

WIDE_DIMENSION = 5.0  # its standard deviation, in medians of all dimensions'


@dataclass(frozen=True)
class Look:
    """What was seen of activations ``[n_sequences, context, d_in]``.

    norms: the median length at each position ``[context]``.  leading: how many first positions are
    outliers in most sequences.  outlier_share: of the other tokens, longer than five times the
    median.  mean_share: ‖mean‖² over the mean of ‖x‖², of tokens that count.  wide_dimensions: how
    many have more than five times the median dimension's standard deviation, wide_share: their part
    of the variance.  spectrum: the share of the variance in the first principal directions
    ``[d_in]``, cumulated.  tokens_per_second: of the model up to the hook, and to its logits.
    """

    d_in: int
    median_norm: float
    norms: list[float]
    leading: int
    outlier_share: float
    mean_share: float
    wide_dimensions: int
    wide_share: float
    spectrum: list[float]
    tokens: int
    tokens_per_second: float
    logits_per_second: float

    def directions_for(self, share: float) -> int:
        """How many principal directions hold that share of the variance."""
        return 1 + sum(held < share for held in self.spectrum[:-1])

    def sentences(self) -> list[str]:
        """What a reader should know before training, in words."""
        said = [
            f"{self.d_in} dimensions, a typical length of {self.median_norm:.4g} "
            f"({self.tokens:,} tokens looked at)."
        ]
        if self.leading:
            first = f"first {self.leading} positions" if self.leading > 1 else "first position"
            said.append(
                f"Outliers are at the {first} of a sequence (a median length of "
                f"{max(self.norms[: self.leading]):.4g}): the recipe leaves that out."
            )
        if self.outlier_share:
            said.append(
                f"{self.outlier_share:.2%} of the other tokens are longer than five times the "
                "median: they are neither trained on nor judged."
            )
        said.append(
            f"The mean of all activations holds {self.mean_share:.0%} of their squared length: "
            "the SAE's bias starts there."
        )
        if self.wide_dimensions:
            said.append(
                f"{self.wide_dimensions} dimensions are far wider than the others and hold "
                f"{self.wide_share:.0%} of the variance: much of what an SAE explains is there."
            )
        said.append(
            f"{self.directions_for(0.9)} of {self.d_in} principal directions hold 90% of the "
            f"variance, {self.directions_for(0.99)} hold 99%."
        )
        return said


@torch.no_grad()
def look_at(model: HookedModel, tokens: torch.Tensor, hook_name: str) -> Look:
    """Looks at the activations of ``tokens`` ``[n_sequences, context]`` at a hook.

    Raises:
        ValueError: if the model has no such hook (the nearest are said), or too few tokens count.
        FloatingPointError: if an activation that counts is NaN or infinite.
    """
    started = time.perf_counter()
    batches = tokens.split(sequences_at_once(model, tokens.shape[1]))
    try:
        seen = [hook_activations(model, b, hook_name).flatten(2).float().cpu() for b in batches]
    except ValueError as error:
        raise ValueError(f"{error}{did_you_mean(hook_name, model.hook_dict)}") from error
    rate = tokens.numel() / (time.perf_counter() - started)
    x = torch.cat(seen)
    started = time.perf_counter()
    run_changed(model, batches[0], {hook_name: lambda acts: None})
    of_logits = batches[0].numel() / (time.perf_counter() - started)
    return look_of(x, TokenMask.from_model(model)(tokens, x), (rate, of_logits))


def look_of(
    x: torch.Tensor, counts: torch.Tensor, per_second: tuple[float, float] = (1.0, 1.0)
) -> Look:
    """The same of activations ``[n_sequences, context, d_in]``.

    Args:
        counts: ``[n_sequences, context]``, which are no special tokens.  per_second: tokens, of the
            model up to the hook, and to its logits.
    """
    norms, leading = x.norm(dim=-1), leading_outliers(x, OUTLIER)
    counts = counts & (torch.arange(x.shape[1]) >= leading)
    if counts.sum() < 2:
        raise ValueError("Fewer than two tokens count here: give more text.")
    if not torch.isfinite(norms[counts]).all():
        raise FloatingPointError("The activations are not finite.")
    median = float(norms[counts].median())
    outlier = counts & (norms > OUTLIER * median)
    kept = x[counts & ~outlier].double()
    mean, deviations = kept.mean(0), kept.std(0)
    wide = deviations > WIDE_DIMENSION * deviations.median()
    eigenvalues = torch.linalg.eigvalsh(kept.T.cov()).flip(0).clamp(min=0)
    return Look(
        d_in=x.shape[-1],
        median_norm=median,
        norms=norms.median(0).values.tolist(),
        leading=leading,
        outlier_share=float(outlier.sum() / counts.sum()),
        mean_share=float(mean.square().sum() / kept.square().sum(-1).mean()),
        wide_dimensions=int(wide.sum()),
        wide_share=float(deviations[wide].square().sum() / deviations.square().sum()),
        spectrum=(eigenvalues.cumsum(0) / eigenvalues.sum()).tolist(),
        tokens=counts.numel(),
        tokens_per_second=per_second[0],
        logits_per_second=per_second[1],
    )
