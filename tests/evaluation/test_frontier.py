"""The frontier's arithmetic and its doors: models, activations, documents, and what it refuses."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from helpers.variants import activations_for
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig, Transcoder, TranscoderConfig
from torch.utils._python_dispatch import TorchDispatchMode

from hsae_lens import MeanBudget, calibrate
from hsae_lens._util.columns import FRONTIER
from hsae_lens.circuits.sites import Site
from hsae_lens.evaluation import (
    evaluate_activations,
    evaluate_budgets,
    evaluate_saes,
)
from hsae_lens.evaluation.frontier.metrics import cross_entropies, kl_divergences
from hsae_lens.models.hooks import hook_activations, logits_with, sequences_at_once
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.models.tokenizing import sequences_of, token_dataset
from hsae_lens.training.activation_cache import cache_activations


def test_activations_alone_give_the_model_s_figures(
    sae: Any, acts: torch.Tensor, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    budgets = [1, 3, 8]
    tokens = tiny_tokens[:12]
    with_model = evaluate_budgets(
        sae,
        tiny_gemma2,
        tokens,
        budgets,
        mask=TokenMask.from_model(tiny_gemma2, slice(1, None)),
        cross_entropy=False,
    )
    # BOS separates documents and is left out where tokens are known.
    kept = acts[~torch.isin(tokens[:, 1:].reshape(-1), torch.tensor([0, 1, 2]))]
    alone = evaluate_activations(sae, kept, budgets, batch_size=37)
    assert list(alone.columns) == list(with_model.columns)
    torch.testing.assert_close(
        torch.tensor(alone.to_numpy()), torch.tensor(with_model.to_numpy()), rtol=1e-5, atol=1e-6
    )


def test_a_data_set_gives_the_figures_of_its_tokens(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    sae.cfg.metadata.context_size = 32
    mask = TokenMask.from_model(tiny_gemma2, slice(1, None))
    settings: dict[str, Any] = {"mask": mask, "bootstrap": 50, "progress": False}
    texts = [document[:600] for document in cpython_reference()[:20]]
    tokenizer, rows = tiny_gemma2.tokenizer, Dataset.from_dict({"text": texts})
    tokens, documents = sequences_of(rows, tokenizer, 32, progress=False)
    want = evaluate_budgets(sae, tiny_gemma2, tokens, [2], documents=documents, **settings)
    assert evaluate_budgets(sae, tiny_gemma2, rows, [2], **settings).equals(want)
    apart = evaluate_budgets(sae, tiny_gemma2, tokens, [2], **settings)
    assert apart["explained_variance"].equals(want["explained_variance"])
    assert not apart["explained_variance_se"].equals(want["explained_variance_se"])
    cut = token_dataset(tiny_tokens[:3])
    settings["bootstrap"] = 0
    assert evaluate_budgets(sae, tiny_gemma2, cut, [2], **settings).equals(
        evaluate_budgets(sae, tiny_gemma2, tiny_tokens[:3], [2], **settings)
    )
    with pytest.raises(ValueError, match="need a model; without one use evaluate_activations"):
        evaluate_budgets(sae, None, rows)
    with pytest.raises(ValueError, match="got a Dataset. Text needs a model"):
        evaluate_activations(sae, rows)
    with pytest.raises(ValueError, match="one split, not streamed.*IterableDataset"):
        evaluate_budgets(sae, tiny_gemma2, rows.to_iterable_dataset())


@torch.no_grad()
def test_every_column_is_what_it_says(any_sae: Any) -> None:
    x = activations_for(any_sae, 150)
    wide = x.flatten(1).double()
    table = evaluate_activations(any_sae, x.flatten(1), list(range(1, 9)), progress=False)
    table, near = table.set_index("k"), closeness(any_sae)
    variance = (wide - wide.mean(0)).square().sum()

    def error(x_hat: torch.Tensor) -> torch.Tensor:
        return (wide - x_hat.flatten(1).double()).square().sum(-1)

    for k in (1, 5, 8):
        with any_sae.using_budget(k):
            code = any_sae.encode(x)
            x_hat = any_sae.decode(code)
        row, x_hat = table.loc[k], x_hat.flatten(1).double()
        explained = 1 - (error(x_hat).sum() / variance).item()
        assert row["l0"] == pytest.approx((code != 0).sum(-1).double().mean().item())
        assert row["explained_variance"] == pytest.approx(explained, **near)
        assert row["fvu"] == pytest.approx(1 - row["explained_variance"])
        assert row["mse"] == pytest.approx(error(x_hat).mean().item(), **near)
        cosines = torch.cosine_similarity(wide, x_hat, dim=-1)
        assert row["cosine"] == pytest.approx(cosines.mean().item(), **near)
        lengths = x_hat.norm(dim=-1) / wide.norm(dim=-1)
        assert row["l2_ratio"] == pytest.approx(lengths.mean().item(), **near)
        share = (code != 0).double().mean(0)
        assert row["dead"] == pytest.approx((share == 0).double().mean().item())
        assert row["dense"] == pytest.approx((share > 0.1).double().mean().item())
    nothing = error(any_sae.decode(torch.zeros_like(any_sae.encode(x)))).sum()
    gained = table["adds"].cumsum() + 1 - (nothing / variance).item()
    assert gained.to_numpy() == pytest.approx(table["explained_variance"].to_numpy(), **near)


def closeness(sae: Any) -> dict[str, float]:
    """How near a figure must be: bfloat16 rounds each sum, and ours are in another order."""
    close = 0.02 if sae.dtype == torch.bfloat16 else 1e-4
    return {"rel": close, "abs": close / 100}


@torch.no_grad()
def test_the_model_s_behaviour_is_what_it_says(
    any_sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    tokens, hook = tiny_tokens[:6], any_sae.cfg.metadata.hook_name
    mask = TokenMask.from_model(tiny_gemma2, slice(1, None))
    (row,) = evaluate_budgets(any_sae, tiny_gemma2, tokens, [3], mask=mask, progress=False).to_dict(
        "records"
    )
    original = hook_activations(tiny_gemma2, tokens, hook)
    keep = mask(tokens, original.flatten(2))
    with any_sae.using_budget(3):
        x_hat = any_sae(original).flatten(2).to(original)
    new = torch.where(keep[..., None], x_hat, original.flatten(2)).reshape(original.shape)

    def log_probs(x: torch.Tensor) -> torch.Tensor:
        return logits_with(tiny_gemma2, tokens, hook, x).double().log_softmax(-1)

    def loss(p: torch.Tensor) -> float:
        next_one = p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        return -next_one[keep[:, :-1]].mean().item()

    clean, spliced, ablated = map(log_probs, (original, new, torch.zeros_like(original)))
    near = closeness(any_sae)
    assert row["ce_clean"] == pytest.approx(loss(clean), rel=1e-5)
    assert row["ce_ablated"] == pytest.approx(loss(ablated), rel=1e-5)
    assert row["ce_with_sae"] == pytest.approx(loss(spliced), **near)
    kl = (clean.exp() * (clean - spliced)).sum(-1)[keep].mean().item()
    assert row["kl"] == pytest.approx(kl, **near)
    score = (row["ce_ablated"] - row["ce_with_sae"]) / (row["ce_ablated"] - row["ce_clean"])
    assert row["ce_score"] == pytest.approx(score)


def test_every_column_stands_in_the_table_of_columns(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    settings: dict[str, Any] = {"bootstrap": 20, "progress": False}
    calibrate(sae, torch.randn(600, 32), progress=False)
    budgets = [2, MeanBudget(2)]
    table = evaluate_saes({"mine": sae}, tiny_gemma2, tiny_tokens[:12], budgets, **settings)
    computed = {name for name in table if not name.endswith("_se")}
    assert computed == {column for column, _ in FRONTIER}


@pytest.mark.parametrize("taken", ["mse", "sae", "predictions"])
def test_a_metric_of_one_s_own_has_a_name_of_its_own(
    taken: str, sae: Any, acts: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match=f"'{taken}' is taken"):
        evaluate_activations(sae, acts, metrics={taken: lambda x, x_hat: x[:, 0]})


def test_a_metric_of_one_s_own_is_one_function(sae: Any, acts: torch.Tensor) -> None:
    metrics = {"largest_miss": lambda x, x_hat: (x - x_hat).abs().amax(-1)}
    table = evaluate_activations(sae, acts, [3], metrics=metrics, batch_size=50)
    with sae.using_budget(3):
        want = (acts - sae(acts)).abs().amax(-1).mean().item()
    assert table["largest_miss"][0] == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="must give one number per token"):
        evaluate_activations(sae, acts, metrics={"all": lambda x, x_hat: x})


def test_standard_errors_grow_with_what_documents_share(sae: Any, acts: torch.Tensor) -> None:
    each = evaluate_activations(sae, acts, [8], bootstrap=300)
    again = evaluate_activations(sae, acts, [8], bootstrap=300, batch_size=50)
    assert each["explained_variance_se"].iloc[0] == pytest.approx(
        again["explained_variance_se"].iloc[0]
    ), "the batch size does not matter"
    tripled = acts.repeat_interleave(3, 0)
    documents = torch.arange(len(acts)).repeat_interleave(3)
    same = evaluate_activations(sae, tripled, [8], bootstrap=300, documents=documents)
    ignored = evaluate_activations(sae, tripled, [8], bootstrap=300)
    column = "explained_variance_se"
    assert same[column].iloc[0] == pytest.approx(each[column].iloc[0], rel=1e-3)
    assert ignored[column].iloc[0] < 0.75 * same[column].iloc[0]


def test_standard_errors_of_the_model_s_behaviour(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    table = evaluate_budgets(
        sae,
        tiny_gemma2,
        tiny_tokens[:12],
        [2],
        mask=TokenMask.from_model(tiny_gemma2, slice(1, None)),
        bootstrap=50,
    )
    assert table["ce_score_se"].iloc[0] > 0
    assert table["explained_variance_se"].iloc[0] > 0
    with pytest.raises(ValueError, match="9 groups of tokens are too few"):
        evaluate_budgets(sae, tiny_gemma2, tiny_tokens[:9], [2], bootstrap=50, cross_entropy=False)


def test_long_activations_are_left_out(sae: Any, acts: torch.Tensor) -> None:
    outlier = torch.cat([acts, 1000 * acts[:1]])
    limit = 10 * acts.norm(dim=-1).max().item()
    assert evaluate_activations(sae, outlier, max_norm=limit).equals(
        evaluate_activations(sae, acts)
    )
    sae.cfg.metadata.max_norm = limit
    assert evaluate_activations(sae, outlier).equals(evaluate_activations(sae, acts))
    with pytest.raises(ValueError, match="No token is left to judge"):
        evaluate_activations(sae, acts, max_norm=1e-6)


def test_activations_that_would_mislead(sae: Any, acts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"reads width d_in=32, but activations has 31"):
        evaluate_activations(sae, acts[:, :31])
    poisoned = acts.clone()
    poisoned[3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="The activations are not finite"):
        evaluate_activations(sae, poisoned)


def test_what_is_not_judged_need_not_be_finite(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    """Special tokens may overflow in float16."""
    tokens = tiny_tokens[:12]

    def judge(spoiled: int | None, **settings: Any) -> pd.DataFrame:
        def spoil(x: torch.Tensor, hook: Any) -> torch.Tensor:
            return x.index_fill(1, torch.tensor([spoiled]), torch.inf)

        hooks = [] if spoiled is None else [(sae.cfg.metadata.hook_name, spoil)]
        with tiny_gemma2.hooks(hooks):
            return evaluate_budgets(
                sae, tiny_gemma2, tokens, [1, 8], mask=mask, progress=False, **settings
            )

    hook, mask = sae.cfg.metadata.hook_name, TokenMask.from_model(tiny_gemma2, slice(1, None))
    assert judge(0).equals(judge(None)), "after the last block each token is on its own"
    for settings in ({}, {"cross_entropy": False}):
        with pytest.raises(FloatingPointError, match=f"activations at {hook} are not finite"):
            judge(5, **settings)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    assert judge(0, cross_entropy=False).equals(judge(None, cross_entropy=False))
    with pytest.raises(FloatingPointError, match="own cross-entropies are not finite"):
        judge(0)  # in the next block all others attend to it


# --- several SAEs of one hook ---


def test_saes_share_the_passes_and_keep_their_figures(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    saes = {"ours": sae, "stock": sae.at_k(8), "3": sae.at_k(3)}
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    mask = TokenMask.from_model(tiny_gemma2, slice(1, None))
    settings: dict[str, Any] = {"mask": mask, "bootstrap": 20, "progress": False}
    handle = tiny_gemma2.unembed.register_forward_hook(count)
    try:
        table = evaluate_saes(saes, tiny_gemma2, tiny_tokens[:12], batch_size=5, **settings)
    finally:
        handle.remove()
    # Three batches; in each one clean pass, one ablated, and one for each SAE and budget.
    assert passes == 3 * (2 + 4 + 4 + 3)
    assert table.columns[0] == "sae"
    assert list(table["sae"]) == ["ours"] * 4 + ["stock"] * 4 + ["3"] * 3
    for name, one in saes.items():
        alone = evaluate_budgets(one, tiny_gemma2, tiny_tokens[:12], batch_size=5, **settings)
        mine = table[table["sae"] == name].drop(columns="sae").reset_index(drop=True)
        assert mine.equals(alone), "to the last digit"


def test_no_budgets_are_not_every_budget(sae: Any, acts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="budgets is empty"):
        evaluate_activations(sae, acts, [])


def test_only_saes_of_one_hook_are_judged_together(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    def judge(**saes: Any) -> None:
        evaluate_saes(saes, tiny_gemma2, tiny_tokens[:2], [1, 8], progress=False)

    other = sae.at_k(8)
    other.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    with pytest.raises(ValueError, match="not of one hook.*ours: blocks.1.*other: blocks.0"):
        judge(ours=sae, other=other)
    with pytest.raises(ValueError, match="There are no SAEs"):
        judge()
    with pytest.raises(ValueError, match=r"^small cannot be judged so: budgets \[8\] are outside"):
        judge(ours=sae, small=sae.at_k(3))


# --- what would be judged wrongly ---


def test_signed_activations_are_ordered_by_size_and_keep_their_sign(acts: torch.Tensor) -> None:
    torch.manual_seed(0)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=32, d_sae=96, k=8))
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.normal_().div_(sae.W_dec.norm(dim=-1, keepdim=True)).T)
    x_hat, codes = sae(acts), sae.encode(acts)
    assert (codes < 0).any()
    table = evaluate_activations(sae, acts, [3, 8], progress=False).set_index("k")
    assert table.loc[8, "mse"] == pytest.approx((acts - x_hat).square().sum(-1).mean().item())
    smallest = codes.abs().topk(3).values[:, -1:]
    three = sae.decode(torch.where(codes.abs() >= smallest, codes, 0))
    assert table.loc[3, "mse"] == pytest.approx((acts - three).square().sum(-1).mean().item())
    assert table["l0"].tolist() == [3, 8]
    site = Site(sae, TokenMask(torch.tensor([0])))
    split = site.split(acts[None], 3)
    torch.testing.assert_close(split.bias + split.code.to_dense(96) @ site.W_dec, three[None])


def test_transcoders_are_not_judged_against_their_input(
    acts: torch.Tensor, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    sae = Transcoder(TranscoderConfig(32, 96, d_out=32, apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized"
    sae.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    message = "is a transcoder: it writes blocks.1.hook_mlp_out, not the blocks.1.ln2.hook_norm"
    with pytest.raises(ValueError, match=message):
        evaluate_activations(sae, acts, [8])
    with pytest.raises(ValueError, match=message):
        evaluate_budgets(sae, tiny_gemma2, tiny_tokens[:2], [8])


def test_an_sae_left_on_the_model_is_said(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor, tmp_path: Path
) -> None:
    tiny_gemma2.add_sae(sae)
    message = r"attached to the model at blocks.1.hook_resid_post.*model.reset_saes\(\) first"
    try:
        for cross_entropy in (True, False):
            with pytest.raises(ValueError, match=message):
                evaluate_budgets(
                    sae, tiny_gemma2, tiny_tokens[:2], cross_entropy=cross_entropy, progress=False
                )
        with pytest.raises(ValueError, match=message):
            hook_activations(tiny_gemma2, tiny_tokens[:2], "blocks.0.hook_resid_post")
        with pytest.raises(ValueError, match=message):
            cache_activations(
                tiny_gemma2, tiny_tokens[:2], "blocks.1.hook_resid_post", tmp_path / "cache"
            )
    finally:
        tiny_gemma2.reset_saes()
    hook_activations(tiny_gemma2, tiny_tokens[:2], "blocks.0.hook_resid_post")


# --- memory ---


class Largest(TorchDispatchMode):
    """Notes the largest float32 and float64 tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, torch.Tensor) and x.dtype in (torch.float32, torch.float64):
                self.numel = max(self.numel, x.numel())
        return made


class Alive(TorchDispatchMode):
    """Counts how many tensors of at least so many numbers are alive at once."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.most = numel, 0
        self.made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.numel() >= self.numel:
            self.made.append(weakref.ref(made))
            alive = [x for ref in self.made if (x := ref()) is not None]
            self.most = max(self.most, len({x.untyped_storage().data_ptr() for x in alive}))
        return made


def test_only_the_clean_logits_are_kept(sae: Any, tiny_gemma2: Any) -> None:
    tokens = torch.randint(3, 500, (32, 64), generator=torch.Generator().manual_seed(0))
    logits = 32 * 64 * len(tiny_gemma2.tokenizer)
    with Alive(logits) as model_alone:
        tiny_gemma2(tokens, prepend_bos=False)
    with Alive(logits) as evaluation:
        evaluate_saes(
            {str(n): sae for n in range(4)}, tiny_gemma2, tokens, batch_size=32, progress=False
        )
    assert model_alone.most > 0
    assert evaluation.most == model_alone.most + 1


def test_no_float32_copy_of_the_logits_is_made(sae: Any, gemma2_folder: Path) -> None:
    model = open_model(gemma2_folder, dtype="bfloat16")
    tokens = torch.randint(3, 500, (32, 64), generator=torch.Generator().manual_seed(0))
    logits = 32 * 64 * len(model.tokenizer)
    with Largest() as largest:
        evaluate_saes({"a": sae, "b": sae}, model, tokens, [2], batch_size=32, progress=False)
    assert largest.numel < logits / 1.5, "slices of two megabytes, of four in all"


def test_losses_in_slices_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, other = torch.randn(2, 3, 50, 9000, generator=generator)
    tokens = torch.randint(9000, (3, 50), generator=generator)
    p, q = clean.log_softmax(-1), other.log_softmax(-1)
    want = torch.nn.functional.cross_entropy(
        other[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(cross_entropies(other, tokens).flatten(), want)
    torch.testing.assert_close(kl_divergences(clean, other), (p.exp() * (p - q)).sum(-1))


def test_logits_decide_how_many_sequences_run_together(tiny_gemma2: Any) -> None:
    class Vast:
        cfg = SimpleNamespace(d_vocab=256_000)  # Gemma 2's

    assert sequences_at_once(tiny_gemma2, 128) == 16
    assert [sequences_at_once(Vast, context) for context in (128, 512, 8192)] == [4, 1, 1]


def test_document_numbers_may_have_gaps(sae: Any, acts: torch.Tensor) -> None:
    documents = torch.arange(len(acts)) // 3
    want = evaluate_activations(sae, acts, [8], bootstrap=20, documents=documents)
    sparse = 10**9 - 10**6 * documents.flip(0)
    with Largest() as largest:
        got = evaluate_activations(sae, acts, [8], bootstrap=20, documents=sparse)
    assert largest.numel < 10**6
    assert got.drop(columns="explained_variance_se").equals(
        want.drop(columns="explained_variance_se")
    )
    column = "explained_variance_se"
    assert got[column][0] == pytest.approx(want[column][0], rel=0.5)


@pytest.mark.parametrize("bootstrap", [-3, 1])
def test_too_few_resamples_are_refused(bootstrap: int, sae: Any, acts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"bootstrap must be 0 .* 2 or more.*got {bootstrap}"):
        evaluate_activations(sae, acts, [8], bootstrap=bootstrap)
