"""The frontier: reconstruction and model behaviour at every budget, on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two, resolve_budgets
from hsae_lens.models import input_device
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.sae import HierarchicalTopKSAE


@torch.no_grad()
def evaluate_budgets(
    sae: SAE[Any],
    model: Any,
    tokens: torch.Tensor,
    budgets: Sequence[int] | None = None,
    *,
    seqpos_slice: tuple[int | None, ...] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluates an SAE at every budget on the same tokens; one clean and one ablated pass in all.

    Definitions are SAELens' ``run_evals``'. Special tokens (BOS, EOS, PAD, …) and positions outside
    ``seqpos_slice`` are left out of every mean and keep their activation when the reconstruction
    is spliced in.

    Args:
        sae: a HierarchicalTopK SAE, or any SAE with a ``k``: it is then truncated to its largest
            activations at each budget.
        model: a hooked model with the hook ``sae.cfg.metadata.hook_name``.
        tokens: int64 ``[n_sequences, context_size]``.
        budgets: ascending within 1..k; None for 1, 2, 4, … k.
        seqpos_slice: positions to judge; None for those the SAE was trained on (its metadata).
        batch_size: sequences per forward pass.

    Returns:
        One row per budget: ``k``, ``l0`` (mean active latents), ``explained_variance``
        (1 − Σ‖x−x̂‖² / Σ‖x−mean x‖², pooled over tokens and dimensions), ``mse`` (mean over tokens
        of ‖x−x̂‖², summed over d_in), ``ce_score`` ((ablated − with SAE) / (ablated − clean)),
        ``ce_with_sae``, ``ce_clean``, ``ce_ablated`` (nats per token; ablated is zero).

    Raises:
        ValueError: for bad budgets, a hook the model lacks, a width that does not match, or an
            error term left on (it would make every budget perfect).
    """
    if sae.use_error_term:
        raise ValueError("Turn use_error_term off: with it the output equals the input at every k.")
    largest = sae.cfg.k if hasattr(sae.cfg, "k") else sae.cfg.d_sae
    resolved = resolve_budgets(budgets or powers_of_two(largest), largest)
    positions = seqpos_slice or sae.cfg.metadata.seqpos_slice or (None,)
    frontier = _Frontier(sae, model, resolved, slice(*positions))
    for batch in tqdm(tokens.split(batch_size), desc="Evaluating", disable=not progress):
        frontier.add(batch)
    return frontier.table()


class _Frontier:
    """Running sums over batches, one set per budget."""

    def __init__(self, sae: SAE[Any], model: Any, budgets: list[int], positions: slice) -> None:
        self.sae, self.model, self.budgets, self.positions = sae, model, budgets, positions
        self.hook_name: str = sae.cfg.metadata.hook_name
        if not self.hook_name:
            raise ValueError("sae.cfg.metadata.hook_name is not set: which hook is this SAE for?")
        self.special = torch.tensor(get_special_token_ids(model.tokenizer))
        self.variance = [ExplainedVarianceCalculator() for _ in budgets]
        self.active = [0.0] * len(budgets)
        self.ce_sums = dict.fromkeys(["clean", "ablated", *budgets], 0.0)
        self.n_predictions = 0

    def add(self, tokens: torch.Tensor) -> None:
        tokens = tokens.to(input_device(self.model))
        keep = torch.zeros_like(tokens, dtype=torch.bool)
        keep[:, self.positions] = True
        keep &= ~torch.isin(tokens, self.special.to(tokens.device))
        seen: list[torch.Tensor] = []
        self._cross_entropy("clean", tokens, keep, lambda acts: seen.append(acts))
        if not seen:
            raise ValueError(
                f"The model has no hook {self.hook_name!r}; on a TransformerBridge call "
                "enable_compatibility_mode(no_processing=True) first."
            )
        original = seen[0]
        x = original.flatten(2)  # attention heads joined
        self._cross_entropy("ablated", tokens, keep, torch.zeros_like)
        for n, (values, x_hat) in enumerate(self._reconstructions(original)):
            x_hat = x_hat.flatten(2).to(x.device)
            self.active[n] += float((values.to(x.device)[keep] != 0).sum())
            self.variance[n].add_batch(x_hat[keep].float(), x[keep])
            spliced = torch.where(keep[..., None], x_hat.to(x.dtype), x).reshape(original.shape)
            self._cross_entropy(self.budgets[n], tokens, keep, lambda _, new=spliced: new)
        self.n_predictions += int(keep[:, :-1].sum())

    def _reconstructions(
        self, original: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (activations in order, x̂) for each budget, never two at a time."""
        sae = self.sae
        sae_in = (original if sae.hook_z_reshaping_mode else original.flatten(2)).to(sae.device)
        if isinstance(sae, HierarchicalTopKSAE):
            code = sae.encode_ordered(sae_in)
            for k in self.budgets:
                prefix = code.prefix(k)
                yield prefix.values, sae.decode_budgets(prefix, [k])[0]
            return
        for k in self.budgets:
            # Encoded for every budget: some normalisations are undone by one decode only.
            prefix = OrderedCode.from_pre_activations(sae.encode(sae_in), k)
            yield prefix.values, sae.decode(prefix.to_dense(sae.cfg.d_sae))

    def _cross_entropy(self, name: str | int, tokens: Any, keep: Any, change: Any) -> None:
        """Adds one pass's loss; ``change`` maps the hook's activations (to None: unchanged)."""
        loss = self.model.run_with_hooks(
            tokens,
            return_type="loss",
            loss_per_token=True,
            prepend_bos=False,
            fwd_hooks=[(self.hook_name, lambda acts, hook: change(acts))],
        )
        self.ce_sums[name] += float(loss.double()[keep[:, :-1]].sum())

    def table(self) -> pd.DataFrame:
        ce = {name: total / max(self.n_predictions, 1) for name, total in self.ce_sums.items()}
        rows = []
        for n, k in enumerate(self.budgets):
            calculator = self.variance[n]
            rows.append(
                {
                    "k": k,
                    "l0": self.active[n] / calculator.num_samples,
                    "explained_variance": calculator.compute(),
                    "mse": calculator.sum_squared_residual / calculator.num_samples,
                    "ce_score": (ce["ablated"] - ce[k]) / (ce["ablated"] - ce["clean"]),
                    "ce_with_sae": ce[k],
                    "ce_clean": ce["clean"],
                    "ce_ablated": ce["ablated"],
                }
            )
        return pd.DataFrame(rows)
