"""What the default settings give on activations that nobody has looked at.

Three families: SmolLM2 with the outlier positions that it has, a random Gemma-2, and sparse
features on a mean that is as long as a typical activation, with outliers of 15 times that length.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig

from benchmarks.session import Session
from hsae_lens import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import tokenize
from hsae_lens.training.learning_rate import suggested_lr
from hsae_lens.training.trainer import HierarchicalTopKTrainer

HOOK = "blocks.15.hook_resid_post"
CONTEXT = 128
STEPS, BATCH, K = 300, 512, 32
BUDGETS = [1, 8, 32]
TRAINED, HELD_OUT = 30_720, 8192  # different tokens
FACTOR = 5.0  # what is judged apart: our default, whatever an SAE was trained with
SAELENS_LR = 3e-4  # its default, and ours before
BEFORE: dict[str, Any] = {"b_dec_init": "zeros", "outlier_factor": None}


@dataclass(frozen=True)
class Setting:
    """How an SAE is made and trained; lr: the suggested one where None."""

    make: Callable[..., TrainingSAE[Any]]
    lr: float | None = None


def _ours(**settings: Any) -> Callable[..., TrainingSAE[Any]]:
    return lambda **sizes: HierarchicalTopKTrainingSAE(
        HierarchicalTopKTrainingSAEConfig(**sizes, **settings)
    )


SETTINGS = {
    "ours": Setting(_ours()),
    "ours, lr 3e-4": Setting(_ours(), SAELENS_LR),
    "ours before": Setting(_ours(**BEFORE), SAELENS_LR),
    "SAELens TopK": Setting(
        lambda **sizes: TopKTrainingSAE(TopKTrainingSAEConfig(**sizes)), SAELENS_LR
    ),
}


def defaults(run: Session) -> list[dict[str, Any]]:
    """Explained variance of held-out tokens after 300 steps, a row for each family and setting.

    Judged without the tokens longer than 5 times the median, by one rule for all, and with them.
    """
    return [row for family in FAMILIES for row in measured(family, run.device)]


def measured(family: str, device: str) -> Iterator[dict[str, Any]]:
    """One family's rows."""
    make, d_sae = FAMILIES[family]
    return _family(family, make(device), d_sae, device)


def _family(name: str, x: torch.Tensor, d_sae: int, device: str) -> Iterator[dict[str, Any]]:
    train, held = x[:-HELD_OUT].to(device), x[-HELD_OUT:].to(device)
    norms = held.norm(dim=-1)
    usual = norms <= FACTOR * train.norm(dim=-1).median()
    print(f"{name}: d_in {x.shape[1]}, median norm {norms.median():.0f}, mean's "
          f"{held[usual].mean(0).norm():.0f}, longest {norms.max():.0f}", flush=True)  # fmt: skip
    shape = {"tokens": BATCH, "d_in": x.shape[1], "d_sae": d_sae, "k": K}
    for label, setting in SETTINGS.items():
        lr = setting.lr or suggested_lr(d_sae, BATCH)
        torch.manual_seed(0)
        sae = setting.make(d_in=x.shape[1], d_sae=d_sae, k=K, device=device)
        started = time.perf_counter()
        _train(sae, train, lr)
        row: dict[str, Any] = {
            "shape": shape,
            "family": name,
            "setting": label,
            "lr": lr,
            "outliers": int((~usual).sum()),
            "without": explained(sae, held[usual]),
            "with": explained(sae, held),
            "seconds": round(time.perf_counter() - started, 1),
        }
        without, everything = (
            " ".join(f"{v:6.2f}" for v in row[name]) for name in ("without", "with")
        )
        print(f"  {label:14s} lr {lr:.2g} {without}  with outliers {everything}", flush=True)
        yield row


def _train(sae: TrainingSAE[Any], x: torch.Tensor, lr: float) -> None:
    """Everything but the learning rate as SAELens' trainer has it by default."""
    cfg = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=lr,
        lr_end=lr / 10,
        device=str(sae.device),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer: SAETrainer[Any, Any] = SAETrainer(cfg, sae, _batches(x))
    if isinstance(sae, HierarchicalTopKTrainingSAE):
        trainer = HierarchicalTopKTrainer.adopt(trainer)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        trainer.fit()


def _batches(x: torch.Tensor) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            if len(chosen) == BATCH:
                yield x[chosen.to(x.device)]


@torch.no_grad()
def explained(sae: TrainingSAE[Any], x: torch.Tensor) -> list[float]:
    """1 − Σ‖x−x̂‖² / Σ‖x−mean x‖² at each budget; x̂ from a token's largest latents.

    SAELens' own ``encode`` and ``decode``, so for every architecture the same.
    """
    errors = torch.zeros(len(BUDGETS), dtype=torch.float64)
    for part in x.split(BATCH):
        values, latents = sae.encode(part).topk(K)
        for n, k in enumerate(BUDGETS):
            acts = part.new_zeros(len(part), sae.cfg.d_sae)
            x_hat = sae.decode(acts.scatter(-1, latents[:, :k], values[:, :k]))
            errors[n] += (x_hat - part).double().square().sum().item()
    total = (x.double() - x.double().mean(0)).square().sum().item()
    return [round(1 - error / total, 4) for error in errors.tolist()]


@torch.no_grad()
def _smollm2(device: str) -> torch.Tensor:
    """Every position of CPython's reference text, BOS and the outliers after it too."""
    model = open_model("smollm2-135m", device)
    tokens = tokenize(cpython_reference(), model.tokenizer, CONTEXT, progress=False)
    tokens = tokens[: (TRAINED + HELD_OUT) // CONTEXT]
    parts = [hook_activations(model, part, HOOK) for part in tokens.split(16)]
    return torch.cat(parts).flatten(0, 1).float().cpu()


@torch.no_grad()
def _gemma2(device: str) -> torch.Tensor:
    """The residual stream after two layers, of the bytes of the same text."""
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=3,  # the last one's output is not the residual stream, but normed
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    model = Gemma2Model(config).eval().to(device)
    text = "\n".join(cpython_reference()).encode()[: TRAINED + HELD_OUT]
    tokens = torch.tensor(list(text), device=device).unflatten(0, (-1, CONTEXT))
    parts = [
        model(input_ids=part, output_hidden_states=True, use_cache=False).hidden_states[2]
        for part in tokens.split(64)
    ]
    return torch.cat(parts).flatten(0, 1).float().cpu()


def _synthetic(device: str) -> torch.Tensor:
    """Mean of norm 6,000, sparse features of norm 1,500 in all, a token in 2,000 at norm 90,000."""
    d_in, features, active = 512, 1024, 12
    generator = torch.Generator().manual_seed(0)

    def directions(n: int) -> torch.Tensor:
        drawn = torch.randn(n, d_in, generator=generator)
        return drawn / drawn.norm(dim=-1, keepdim=True)

    n = TRAINED + HELD_OUT
    rarity = 1 / torch.arange(1, features + 1).float().sqrt()
    chosen = torch.multinomial(rarity.expand(n, -1), active, generator=generator)
    sizes = torch.rand(n, active, generator=generator) + 0.5
    decoder = directions(features)
    x = torch.nn.functional.embedding_bag(chosen, decoder, per_sample_weights=sizes, mode="sum")
    x += 0.1 * active**0.5 * directions(n)  # noise, a hundredth of the variance
    x *= 1500 / (x - x.mean(0)).norm(dim=-1).mean()
    x += 6000 * directions(1) - x.mean(0)
    outliers = torch.rand(n, generator=generator) < 1 / 2000
    x[outliers] += 90_000 * directions(1)
    return x


FAMILIES: dict[str, tuple[Callable[[str], torch.Tensor], int]] = {
    f"SmolLM2-135M, block 15, context {CONTEXT}": (_smollm2, 2048),
    "Gemma-2 with random weights, layer 2": (_gemma2, 1024),
    "synthetic, mean of norm 6,000": (_synthetic, 2048),
}
"""How to make activations ``[TRAINED + HELD_OUT, d_in]``, and how many latents they get."""
