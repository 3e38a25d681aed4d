"""The training architecture: SAELens' TopK training SAE with the nested objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import simple_parsing
import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from hsae_lens import kernels
from hsae_lens.budgets import powers_of_two, resolve_budgets, resolve_weights
from hsae_lens.encode import encode_topk
from hsae_lens.files import explaining_bad_files, saved_whole
from hsae_lens.lagged import Lagged, lag_on
from hsae_lens.nested import NestedOutput, nested_pass
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.sae import ARCHITECTURE, check_budget, check_k, decoder_target, norms_are_one


def _parse_weights(text: str) -> str | list[float]:
    """A command-line weighting: a schedule's name or comma-separated numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def _parse_budgets(text: str) -> list[int] | None:
    """Command-line budgets: comma-separated whole numbers, or "all"."""
    return None if text == "all" else [int(part) for part in text.split(",")]


@dataclass
class HierarchicalTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """Configuration for training a HierarchicalTopK SAE (arXiv 2505.24473).

    The loss is Σ_{j in budgets} w_j · mean over tokens of ‖x − x̂_j‖², where x̂_j uses a token's j
    largest latents. With ``budgets=[k]`` it is exactly SAELens' TopK.

    Args:
        k (int): The largest budget: how many latents a token may use.
        budgets (list[int] | None): The budgets the loss looks at, ascending within 1..k. None, the
            default, is every 1..k (on the command line: all, or 1,2,4,8).
        budget_weights (str | list[float]): How much each budget counts: "uniform" (the paper's),
            "inverse", "inverse_sqrt", or one number per budget. Normalised to sum 1.
        default_budget (int | None): The budget a saved SAE starts with. None means k.
        aux_loss_coefficient (float): Weight of the auxiliary loss that revives dead latents, as
            in SAELens' TopK. 0 turns it off.
        rescale_acts_by_decoder_norm (bool): Choose latents by pre-activation times decoder norm,
            as in SAELens' TopK, so that drifting norms do not decide.
        use_sparse_activations (bool): Whether a training step reports ``feature_acts`` as a COO
            tensor, which spares SAELens' trainer several passes over [batch, d_sae]. ``encode``
            is always dense.
        kernel (str): Forces an implementation of the objective, see ``hsae_lens.kernels``.
        b_dec_init ("zeros" | "mean"): What b_dec starts as: zeros, as in SAELens, or the mean of
            the first batch. The mean saves the steps Adam would need to walk there.
        decoder_init_norm (float | None): Norm the decoder rows start with. Inherited.
        d_in (int): Width of the activations. Inherited from SAEConfig.
        d_sae (int): Number of latents. Inherited from SAEConfig.
        dtype (str): Type of the parameters. Inherited from SAEConfig.
        device (str): Where the parameters are. Inherited from SAEConfig.
        apply_b_dec_to_input (bool): Whether b_dec is subtracted from the input. Inherited.
        normalize_activations (str): Input normalisation. Inherited from SAEConfig.
        reshape_activations (str): "hook_z" joins attention heads. Inherited from SAEConfig.
        metadata (SAEMetadata): Model, hook and training facts. Inherited from SAEConfig.
    """

    use_sparse_activations: bool = True
    budgets: list[int] | None = simple_parsing.field(default=None, type=_parse_budgets, nargs=None)
    budget_weights: str | list[float] = simple_parsing.field(
        default="uniform", type=_parse_weights, nargs=None
    )
    default_budget: int | None = None
    kernel: str = "auto"
    b_dec_init: Literal["zeros", "mean"] = "zeros"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self.d_sae)
        resolve_weights(self.budget_weights, resolve_budgets(self.budgets, self.k))
        if self.default_budget is not None:
            check_budget(self.default_budget, self.k, "default_budget")
        if self.aux_loss_coefficient < 0:
            raise ValueError(
                f"aux_loss_coefficient must not be negative, got {self.aux_loss_coefficient}."
            )
        if self.b_dec_init not in ("zeros", "mean"):
            raise ValueError(f"b_dec_init must be 'zeros' or 'mean', got {self.b_dec_init!r}.")
        if self.kernel != "auto" and self.kernel not in kernels.IMPLEMENTATIONS:
            raise ValueError(
                f"Unknown kernel {self.kernel!r}. Known: auto, "
                f"{', '.join(kernels.IMPLEMENTATIONS)}."
            )

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        # Saving for inference folds the decoder norms to 1, so there is nothing left to rescale.
        return {**super().get_inference_sae_cfg_dict(), "rescale_acts_by_decoder_norm": False}


class HierarchicalTopKTrainingSAE(TopKTrainingSAE):
    """Trains one SAE for every budget at once; a drop-in for SAELens' TopK in its runners.

    ``encode`` and ``decode`` are SAELens' at k. ``training_forward_pass`` computes the nested loss
    and its gradients without any [batch, d_sae] tensor that has a gradient. In that pass
    ``hook_sae_input`` and ``hook_sae_recons`` fire (the latter on the reconstruction at k);
    ``hook_sae_acts_pre`` and ``hook_sae_acts_post`` fire in ``encode`` only.
    """

    cfg: HierarchicalTopKTrainingSAEConfig

    def __init__(
        self, cfg: HierarchicalTopKTrainingSAEConfig, use_error_term: bool = False
    ) -> None:
        super().__init__(cfg, use_error_term)
        self.budgets = resolve_budgets(cfg.budgets, cfg.k)
        self.budget_weights = resolve_weights(cfg.budget_weights, self.budgets)
        self.checks_activations = True  # False where the trainer does it without waiting for a GPU
        self._n_dead = Lagged()

    @override
    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        k = self.cfg.k
        return lambda pre: OrderedCode.from_pre_activations(pre, k).to_dense(pre.shape[-1])

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's losses: the nested loss at every budget plus the dead latents' auxiliary loss.

        Raises:
            FloatingPointError: if the activations hold NaN or infinity; names step and share.
        """
        if self.checks_activations or step_input.n_training_steps == 0:
            self._check_finite(step_input)
        x = self.hook_sae_input(self.reshape_fn_in(step_input.sae_in.to(self.dtype)))
        normed = self.run_time_activation_norm_fn_in(x)
        if step_input.n_training_steps == 0 and self.cfg.b_dec_init == "mean":
            self.b_dec.data.copy_(normed.mean(0))
        norms = self.W_dec.detach().norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
        # Coefficients multiply decoder rows; the activations SAELens reports are coefficient times
        # norm. The norm's own gradient is zero: z·norm for choosing, /norm for decoding.
        coefficients = encode_topk(
            normed,
            self.W_enc,
            self.b_enc,
            self.b_dec if self.cfg.apply_b_dec_to_input else None,
            self.cfg.k,
            selection_scale=norms,
            kernel=self.cfg.kernel,
        )
        nested, sae_out = self._nested(coefficients, normed, x)
        losses = {"nested_loss": nested.loss}
        if self.cfg.aux_loss_coefficient:
            losses["auxiliary_reconstruction_loss"] = self._dead_latent_loss(
                normed, (x - sae_out).detach(), norms, step_input.dead_neuron_mask
            )
        values = coefficients.values.detach()
        if norms is not None:
            values = values * norms[coefficients.indices]
        code = OrderedCode(values, coefficients.indices)
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=sae_out,
            feature_acts=self._report(code),
            hidden_pre=values,  # the selected ones: all of them were never kept
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics=self._metrics(nested.mse, x) if step_input.is_logging_step else {},
        )

    def _nested(
        self, coefficients: OrderedCode, normed: torch.Tensor, x: torch.Tensor
    ) -> tuple[NestedOutput, torch.Tensor]:
        """The nested loss in the input's own units, and the reconstruction at the last budget."""
        target, token_weights = decoder_target(self, x, normed)
        nested = nested_pass(
            coefficients,
            self.W_dec,
            self.b_dec,
            target,
            self.budgets,
            self.budget_weights,
            token_weights=token_weights,
            kernel=self.cfg.kernel,
        )
        sae_out = self.run_time_activation_norm_fn_out(self.hook_sae_recons(nested.reconstruction))
        return nested, self.reshape_fn_out(sae_out, self.d_head)

    def _dead_latent_loss(
        self,
        normed: torch.Tensor,
        residual: torch.Tensor,
        norms: torch.Tensor | None,
        dead_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """SAELens' TopK auxiliary loss, computed on the dead columns only.

        Up to d_in/2 dead latents with the largest pre-activations reconstruct, without bias, what
        the living ones left over: coefficient · min(dead / (d_in/2), 1) · mean over tokens of the
        squared error summed over d_in (Gao et al., arXiv 2406.04093, appendix A.2).
        """
        if dead_mask is None:
            return residual.new_zeros(())
        count = dead_mask.sum()
        room = self._room_for_dead(count)
        if room == 0:
            return residual.new_zeros(())
        if self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            raise ValueError(
                "The auxiliary loss does not support normalize_activations="
                f"{self.cfg.normalize_activations!r} (as in SAELens' TopK). Set "
                "aux_loss_coefficient=0, or use another normalisation."
            )
        # Dead latents first; where there is room for more than there are, the others count as 0.
        is_dead, dead = dead_mask.to(torch.uint8).sort(descending=True, stable=True)
        is_dead, dead = is_dead[:room].bool(), dead[:room]
        heuristic = normed.shape[-1] // 2
        centred = normed - self.b_dec if self.cfg.apply_b_dec_to_input else normed
        pre = torch.where(is_dead, centred @ self.W_enc[:, dead] + self.b_enc[dead], 0)
        ranked = (pre if norms is None else pre * norms[dead]).masked_fill(~is_dead, -torch.inf)
        chosen = ranked.topk(min(heuristic, room), sorted=False).indices
        acts = torch.zeros_like(pre).scatter(-1, chosen, pre.gather(-1, chosen))
        error = (acts @ self.W_dec[dead] - residual).pow(2).sum(dim=-1).mean()
        share = (count.to(error.dtype) / heuristic).clamp(max=1)
        return self.cfg.aux_loss_coefficient * share * error

    def _room_for_dead(self, count: torch.Tensor) -> int:
        """How many dead latents to make room for: as many as there are.

        On a GPU, as there were some steps ago, with slack: asking how many there are now would wait
        for it. Those that do not fit wait for a later step.
        """
        n = int(self._n_dead.step(count))
        return (
            n if n == 0 or lag_on(count.device) == 0 else min(2 ** n.bit_length(), self.cfg.d_sae)
        )

    def _report(self, code: OrderedCode) -> torch.Tensor:
        if self.cfg.use_sparse_activations:
            return code.to_sparse(self.cfg.d_sae)
        return code.to_dense(self.cfg.d_sae)

    @torch.no_grad()
    def _metrics(self, mse: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
        """Squared error and explained variance at powers of two among the trained budgets."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance = (wide - wide.mean(0)).pow(2).sum(-1).mean().double()
        shown = set(powers_of_two(self.cfg.k)) & set(self.budgets) or self.budgets
        metrics: dict[str, Any] = {}
        for n, j in enumerate(self.budgets):
            if j in shown:
                metrics[f"mse_at_{j}"] = mse[n]
                metrics[f"explained_variance_at_{j}"] = 1 - mse[n] / variance
        return metrics

    def _check_finite(self, step_input: TrainStepInput) -> None:
        finite = torch.isfinite(step_input.sae_in)
        if not finite.all():
            share = 1 - finite.double().mean().item()
            raise FloatingPointError(
                f"Step {step_input.n_training_steps}: {share:.2%} of the activations are NaN or "
                "infinite. Training stopped before they reached the weights; the last checkpoint "
                "is intact. Look at the model's dtype (float16 overflows) and the data."
            )

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """As :meth:`HierarchicalTopKSAE.fold_W_dec_norm`."""
        if self.cfg.rescale_acts_by_decoder_norm or not norms_are_one(self.W_dec):
            super().fold_W_dec_norm()

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens' ``save_model``; the files appear whole or not at all."""
        return saved_whole(super().save_model, path)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens' ``save_inference_model``; the files appear whole or not at all."""
        return saved_whole(super().save_inference_model, path)

    @override
    @classmethod
    def load_from_disk(cls, path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As SAELens' ``load_from_disk``, with the cause and the fix when a file is damaged."""
        with explaining_bad_files(path):
            return super().load_from_disk(path, *args, **kwargs)
