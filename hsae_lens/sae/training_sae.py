"""The training architecture: SAELens' TopK training SAE with the nested objective."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import simple_parsing
import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from hsae_lens._util.delayed_scalar import DelayedScalar, delay_on
from hsae_lens.objective import kernels
from hsae_lens.objective.budgets import powers_of_two, resolve_budgets, resolve_weights
from hsae_lens.objective.encode import encode_topk
from hsae_lens.objective.loss import NestedOutput, nested_pass
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.calibration import CalibratedSAE, RecentActivations, calibrate
from hsae_lens.sae.from_stock import take_over, wanted_k
from hsae_lens.sae.inference_sae import ARCHITECTURE, check_budget_fields, norms_are_one
from hsae_lens.sae.normalization import OwnInputSteps, decoder_scale, decoder_target
from hsae_lens.sae.outliers import Outliers, weights_of_kept
from hsae_lens.sae.saved_files import CheckedFiles, read_config, save_whole

logger = logging.getLogger(__name__)

RECENT_TOKENS = 8192  # of the end of training: a mean of latents is then within a per cent

# SAELens' runners make a flag of each field of the config below; how its text is read must stand on
# the field. From Python both hold lists.


def _parse_weights(text: str) -> str | list[float]:
    """A command-line weighting: a schedule's name or comma-separated numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def _parse_budgets(text: str) -> list[int] | None:
    """Command-line budgets: comma-separated whole numbers, or "all"."""
    return None if text == "all" else [int(part) for part in text.split(",")]


def _dense_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    return OrderedCode.from_pre_activations(pre, k).to_dense(pre.shape[-1])


@dataclass
class HierarchicalTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """Configuration for training a HierarchicalTopK SAE (arXiv 2505.24473).

    The loss is Σ_{j in budgets} w_j · mean over tokens of ‖x − x̂_j‖², where x̂_j uses a token's j
    largest latents. With ``budgets=[k]`` it is exactly SAELens' TopK.

    Args:
        k (int): The largest budget: how many latents a token may use.
        budgets (list[int] | None): The budgets the loss looks at, ascending within 1..k; the last
            one is k. None, the default, is every 1..k (on the command line: all, or 1,2,4,8).
        budget_weights (str | list[float]): How much each budget counts: "uniform" (the paper's),
            "inverse" and "inverse_sqrt" for the small ones, "linear" and "square" for the large,
            or one number per budget. Normalised to sum 1.
        default_budget (int | None): The budget a saved SAE starts with. None means k.
        aux_loss_coefficient (float): Weight of the auxiliary loss that revives dead latents, as
            in SAELens' TopK. 0 turns it off.
        rescale_acts_by_decoder_norm (bool): Choose latents by pre-activation times decoder norm,
            as in SAELens' TopK, so that drifting norms do not decide.
        use_sparse_activations (bool): Whether a training step reports ``feature_acts`` as a COO
            tensor, which spares SAELens' trainer several passes over [batch, d_sae]. ``encode``
            is always dense.
        kernel (str): Forces an implementation of the objective (``hsae_lens.objective.kernels``).
        b_dec_init ("mean" | "zeros"): What b_dec starts as: the mean of the first batch, or zeros
            as in SAELens. The mean saves the steps Adam would need to walk there: where it is as
            long as a typical activation, hundreds. A b_dec that is not zeros, of an SAE trained
            before, stays as it is.
        outlier_factor (float | None): An activation longer than so many times the median of the
            first batch is an outlier. It counts neither in the losses nor in b_dec's mean nor as a
            firing; the limit is saved as ``metadata.max_norm``, so that judging leaves the same
            tokens out, and the share that was left out as ``metadata.outlier_share``. A max_norm
            that is there, given or of an SAE trained before, is kept; it is in the units that the
            SAE reads, scaled ones until the end with expected_average_only_in. None keeps every
            token. Without effect with covariance_whitening: all are about as long then.
        calibration (dict | None): Not to be given: a training step takes it away, and at the end
            the saved SAE has what :func:`hsae_lens.calibrate` finds in the latest activations.
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
    b_dec_init: Literal["zeros", "mean"] = "mean"
    outlier_factor: float | None = 5.0
    calibration: dict[str, Any] | None = simple_parsing.field(default=None, cmd=False)

    def __post_init__(self) -> None:
        check_budget_fields(self)
        self._check_budgets()
        super().__post_init__()  # copies the settings into the metadata, which is saved as JSON too
        if not 0 <= self.aux_loss_coefficient < math.inf:
            raise ValueError(
                "aux_loss_coefficient must not be negative or infinite, got "
                f"{self.aux_loss_coefficient}."
            )
        if self.b_dec_init not in ("zeros", "mean"):
            raise ValueError(f"b_dec_init must be 'zeros' or 'mean', got {self.b_dec_init!r}.")
        if self.outlier_factor is not None and not 1 < self.outlier_factor < math.inf:
            raise ValueError(
                "outlier_factor must be greater than 1, or None for no outliers, got "
                f"{self.outlier_factor}."
            )
        kernels.check_name(self.kernel)

    def _check_budgets(self) -> None:
        """Makes budgets and weights Python numbers, and refuses a loss that stops short of k."""
        budgets = resolve_budgets(self.budgets, self.k)
        weights = resolve_weights(self.budget_weights, budgets)
        last = max(j for j, weight in zip(budgets, weights, strict=True) if weight > 0)
        if last < self.k:
            raise ValueError(
                f"The loss looks at a token's first {last} latents, so those up to k={self.k} "
                f"would be saved untrained. Set k={last}, or give budget {self.k} a weight too."
            )
        self.budgets = None if self.budgets is None else budgets
        if not isinstance(self.budget_weights, (str, type(None))):
            self.budget_weights = [float(weight) for weight in self.budget_weights]

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        # Saving for inference folds the decoder norms to 1, so there is nothing left to rescale.
        return {**super().get_inference_sae_cfg_dict(), "rescale_acts_by_decoder_norm": False}


class HierarchicalTopKTrainingSAE(CalibratedSAE, OwnInputSteps, CheckedFiles, TopKTrainingSAE):
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
        self._n_dead = DelayedScalar()
        self._recent = RecentActivations(RECENT_TOKENS, cfg.d_in)
        self._outliers = Outliers()

    @classmethod
    def from_sae(cls, sae: SAE[Any], *, k: int | None = None, **settings: Any) -> Self:
        """A training SAE that starts as another SAE, to teach it every budget (``hsae convert``).

        Before a step it reconstructs at the source's own k, or above its threshold
        (``metadata.source_threshold``, in the numbers that latents are ordered by), what the source
        does: :func:`hsae_lens.sae.from_stock.take_over`. Model, hook, normalisation, decoder norms
        and biases are the source's.

        Args:
            sae: a SAELens TopK, BatchTopK or JumpReLU SAE, for inference or training, or a
                hierarchical one. It is not changed.
            k: the largest budget. None for the source's own.
            settings: of :class:`HierarchicalTopKTrainingSAEConfig`, such as ``budgets``,
                ``budget_weights`` or ``aux_loss_coefficient``; not those that are the source's.

        Raises:
            ValueError: for another architecture, damaged weights, a source without a k where none
                is given, or settings that cannot be.
        """
        taken = take_over(sae)
        # Zeros, of a source without b_dec, stay zeros: the mean would move what it reconstructs.
        own: dict[str, Any] = {"b_dec_init": "zeros", "decoder_init_norm": None}
        if clash := sorted(set(settings) & {*taken.settings, "metadata"}):
            raise ValueError(f"{', '.join(clash)} cannot be set: the source's stays.")
        cfg = HierarchicalTopKTrainingSAEConfig(
            **taken.settings, **(own | settings), k=wanted_k(k, taken)
        )
        cfg.metadata = taken.metadata
        cfg.metadata.source_k, cfg.metadata.source_threshold = taken.k, taken.threshold
        converted = cls(cfg)
        with torch.no_grad():
            for name, tensor in taken.weights.items():
                getattr(converted, name).copy_(tensor)
        return converted

    @override
    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return functools.partial(_dense_topk, k=self.cfg.k)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # What a trainer arranged, and counts on their way from a GPU, stay with the original.
        return {**super().__getstate__(), "_n_dead": DelayedScalar(), "checks_activations": True}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's losses: the nested loss at every budget plus the dead latents' auxiliary loss.

        Both are means over the tokens that count, as if there were no others in the batch.

        Raises:
            ValueError: if a ``metadata.max_norm`` leaves out more than half of the first batch.
            FloatingPointError: if the activations hold NaN or infinity (names step and share), the
                first batch is all zeros, or the loss is not finite.
        """
        checks = self.checks_activations or step_input.n_training_steps == 0
        if checks:
            self._check_activations(step_input)
        x = self.hook_sae_input(self.reshape_fn_in(step_input.sae_in.to(self.dtype)))
        self._recent.add(x)  # outliers too: calibrating leaves them out
        self.cfg.calibration = None  # that of an SAE trained before: the weights change now
        if step_input.n_training_steps == 0:
            self._outliers.find_limit(self, x)
        keep = self._outliers.keep(self, x)
        normed = self.run_time_activation_norm_fn_in(x)
        if step_input.n_training_steps == 0 and self.cfg.b_dec_init == "mean":
            self._start_b_dec(normed if keep is None else normed[keep])
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
        scale = decoder_scale(self)  # un-normalising the reconstruction forgets it
        counts = None if keep is None else weights_of_kept(keep, x.dtype)
        nested, sae_out = self._nested(coefficients, normed, x, counts)
        losses = {"nested_loss": nested.loss}
        if self.cfg.aux_loss_coefficient:
            losses["auxiliary_reconstruction_loss"] = self._dead_latent_loss(
                normed, (x - sae_out).detach(), scale, norms, step_input.dead_neuron_mask, counts
            )
        loss = torch.stack(list(losses.values())).sum()
        if checks:
            self._check_loss(loss, step_input.n_training_steps)
        values = coefficients.values.detach()
        if norms is not None:
            values = values * norms[coefficients.indices]
        if keep is not None:  # what fires on an outlier alone has not fired
            values = values.masked_fill(~keep.unsqueeze(-1), 0)
        code = OrderedCode(values, coefficients.indices)
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=sae_out,
            feature_acts=self._report(code),
            hidden_pre=values,  # the selected ones: all of them were never kept
            loss=loss,
            losses=losses,
            metrics=self._metrics(nested.mse, x, counts) if step_input.is_logging_step else {},
        )

    def _nested(
        self,
        coefficients: OrderedCode,
        normed: torch.Tensor,
        x: torch.Tensor,
        counts: torch.Tensor | None,
    ) -> tuple[NestedOutput, torch.Tensor]:
        """The nested loss in the input's own units, and the reconstruction at the last budget."""
        target, token_weights = decoder_target(self, x, normed)
        if counts is not None:
            token_weights = counts if token_weights is None else token_weights * counts
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
        scale: torch.Tensor | float,
        norms: torch.Tensor | None,
        dead_mask: torch.Tensor | None,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        """SAELens' TopK auxiliary loss, computed on the dead columns only.

        Up to d_in/2 dead latents with the largest pre-activations reconstruct, without bias, what
        the living ones left over: coefficient · min(dead / (d_in/2), 1) · mean over tokens of the
        squared error summed over d_in (Gao et al., arXiv 2406.04093, appendix A.2). The error is in
        the input's units: ``scale`` ``[B, 1]`` takes the decoder's output there.
        """
        if dead_mask is None:
            return residual.new_zeros(())
        count = dead_mask.sum()
        room = self._room_for_dead(count)
        if room == 0:
            return residual.new_zeros(())
        # Dead latents first; where there is room for more than there are, the others count as 0.
        is_dead, dead = dead_mask.to(torch.uint8).sort(descending=True, stable=True)
        is_dead, dead = is_dead[:room].bool(), dead[:room]
        heuristic = normed.shape[-1] // 2
        centred = normed - self.b_dec if self.cfg.apply_b_dec_to_input else normed
        pre = torch.where(is_dead, centred @ self.W_enc[:, dead] + self.b_enc[dead], 0)
        ranked = (pre if norms is None else pre * norms[dead]).masked_fill(~is_dead, -torch.inf)
        chosen = ranked.topk(min(heuristic, room), sorted=False).indices
        acts = torch.zeros_like(pre).scatter(-1, chosen, pre.gather(-1, chosen))
        errors = (acts @ self.W_dec[dead] * scale - residual).pow(2).sum(dim=-1)
        error = (errors if counts is None else errors * counts).mean()
        share = (count.to(error.dtype) / heuristic).clamp(max=1)
        return self.cfg.aux_loss_coefficient * share * error

    def _room_for_dead(self, count: torch.Tensor) -> int:
        """How many dead latents to make room for: as many as there are.

        On a GPU, as there were some steps ago, with slack: asking how many there are now would wait
        for it. Those that do not fit wait for a later step.
        """
        n = int(self._n_dead.step(count))
        return (
            n if n == 0 or delay_on(count.device) == 0 else min(2 ** n.bit_length(), self.cfg.d_sae)
        )

    def _report(self, code: OrderedCode) -> torch.Tensor:
        if self.cfg.use_sparse_activations:
            return code.to_sparse(self.cfg.d_sae)
        return code.to_dense(self.cfg.d_sae)

    @torch.no_grad()
    def _metrics(
        self, mse: torch.Tensor, x: torch.Tensor, counts: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Squared error and explained variance at powers of two among the trained budgets.

        Where the batch has no variance (one token, again and again) none can be explained: NaN.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weights = wide.new_ones(()) if counts is None else counts.to(wide)
        mean = (wide * weights.unsqueeze(-1)).mean(0)
        variance = ((wide - mean).pow(2).sum(-1) * weights).mean().to(mse.dtype)
        variance = torch.where(variance > 0, variance, torch.nan)
        shown = set(powers_of_two(self.cfg.k)) & set(self.budgets) or self.budgets
        metrics: dict[str, Any] = {}
        for n, j in enumerate(self.budgets):
            if j in shown:
                metrics[f"mse_at_{j}"] = mse[n]
                metrics[f"explained_variance_at_{j}"] = 1 - mse[n] / variance
        return metrics

    @torch.no_grad()
    def _start_b_dec(self, normed: torch.Tensor) -> None:
        """b_dec at the mean of the first batch; that of an SAE trained before is not touched."""
        if not self.b_dec.any():
            self.b_dec.copy_(normed.mean(0))

    def _check_activations(self, step_input: TrainStepInput) -> None:
        x, n = step_input.sae_in, step_input.n_training_steps
        finite = torch.isfinite(x)
        if not finite.all():
            share = 1 - finite.sum().item() / finite.numel()
            raise FloatingPointError(
                f"Step {n}: {share:.2%} of the activations are NaN or infinite. Training stopped "
                "before they reached the weights; the last checkpoint is intact. Look at the "
                "model's dtype (float16 overflows) and the data."
            )
        if n == 0 and not x.any():
            raise FloatingPointError(
                "Step 0: all activations are zero. Either the hook gives nothing else, or the "
                "scale that expected_average_only_in estimated is 0 because some activations were "
                "infinite. Look at the hook, the model's dtype (float16 overflows) and the data."
            )

    def _check_loss(self, loss: torch.Tensor, n_training_steps: int) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"Step {n_training_steps}: the loss is {loss.item()}, though the activations are "
                "finite. Training stopped before it reached the weights; the last checkpoint is "
                f"intact. Look at the learning rate, at the SAE's dtype ({self.cfg.dtype}) and at "
                f"normalize_activations ({self.cfg.normalize_activations!r})."
            )

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """As :meth:`HierarchicalTopKSAE.fold_W_dec_norm`."""
        if self.cfg.rescale_acts_by_decoder_norm or not norms_are_one(self.W_dec):
            super().fold_W_dec_norm()

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens' ``save_inference_model``; the files appear whole or not at all.

        The saved SAE is calibrated with the latest activations of the training, and its metadata
        says which share of the tokens was left out as outliers.
        """
        self._calibrate()
        if self._outliers.n_tokens:
            self.cfg.metadata.outlier_share = self._outliers.share()
        return save_whole(super().save_inference_model, path)

    def _calibrate(self) -> None:
        """Thresholds for mean budgets, from activations of the latest steps, if there were any."""
        if self._recent.n == 0:
            return
        try:
            calibrate(self, self._recent.batches(), progress=False)
        # Whatever it is, out of memory too: the SAE is trained, and is to be saved all the same.
        except (ValueError, FloatingPointError, RuntimeError) as error:
            logger.warning("Saved without thresholds for mean budgets: %s", error)

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """As SAELens'; outliers are what they were before the checkpoint."""
        super().load_weights_from_checkpoint(checkpoint_path)
        saved = read_config(Path(checkpoint_path)).get("metadata") or {}
        if saved.get("max_norm"):
            self.cfg.metadata.max_norm = saved["max_norm"]

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """As SAELens'; the calibration goes, the limit of outliers is one of raw activations."""
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.outlier_factor is not None and self.cfg.metadata.max_norm:
            self.cfg.metadata.max_norm /= scaling_factor

    @override
    def _after_folding(self, unscaled: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super()._after_folding(unscaled)
        self._recent.change(unscaled)
