"""Mean budgets and error targets where fixed budgets go: evaluation, and `hsae calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import training_sae
from helpers.eval_runs import documents
from sae_lens import SAE

from hsae_lens import ErrorTarget, HierarchicalTopKSAE, MeanBudget, calibrate
from hsae_lens.cli import main
from hsae_lens.evaluation import evaluate_activations, evaluate_budgets, evaluate_saes
from hsae_lens.evaluation.checks import all_budgets
from hsae_lens.evaluation.tasks.evaluate import evaluate_tasks
from hsae_lens.evaluation.tasks.pairs import Pair, tokenize_pairs
from hsae_lens.models.hooks import hook_activations, logits_with
from hsae_lens.models.token_mask import TokenMask

BUDGETS = [2, 8, MeanBudget(2), MeanBudget(5.5), ErrorTarget(2), ErrorTarget(3)]


@pytest.fixture
def calibrated(any_sae: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: Any) -> Any:
    x = hook_activations(tiny_gemma2, tiny_tokens, any_sae.cfg.metadata.hook_name)[:, 1:]
    calibrate(any_sae, x.flatten(2).reshape(-1, 32), progress=False)
    return any_sae


def test_rows_are_what_the_sae_gives_at_that_budget(
    calibrated: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    tokens, hook = tiny_tokens[:12], calibrated.cfg.metadata.hook_name
    mask = TokenMask.from_model(tiny_gemma2, slice(1, None))
    settings: dict[str, Any] = {"mask": mask, "progress": False}
    table = evaluate_budgets(calibrated, tiny_gemma2, tokens, BUDGETS, **settings)
    assert list(table["rule"]) == ["fixed", "fixed", "mean", "mean", "error", "error"]
    assert list(table["target"]) == [2, 8, 2, 5.5, 2, 3]
    assert list(table["k"]) == [2, 8, 2, 5.5, 8, 8]
    assert list(table["adds"].isna()) == [False, False, True, True, True, True]
    acts = hook_activations(tiny_gemma2, tokens, hook)
    keep = mask(tokens, acts.flatten(2))
    x = acts.flatten(2)[keep].double()
    variance = x.var(0, correction=0).sum()
    for budget, row in zip(BUDGETS, table.to_dict("records"), strict=True):
        with calibrated.using_budget(budget):
            x_hat = calibrated(acts.to(calibrated.dtype))
            active = (calibrated.encode(acts.to(calibrated.dtype)) != 0).sum(-1)[keep]
        coarse = calibrated.dtype == torch.bfloat16  # x is rounded before or after normalisation
        rounding = {"rel": 1e-2 if coarse else 1e-5, "abs": 1e-6}
        assert row["l0"] == pytest.approx(active.double().mean().item(), **rounding)
        mse = (x_hat.flatten(2)[keep].double() - x).square().sum(-1).mean()
        assert row["mse"] == pytest.approx(mse.item(), **rounding)
        assert row["fvu"] == pytest.approx((mse / variance).item(), **rounding)
        if budget == MeanBudget(2):
            new = torch.where(keep[..., None], x_hat.flatten(2).to(acts.dtype), acts.flatten(2))
            logits = logits_with(tiny_gemma2, tokens, hook, new.reshape(acts.shape))
            losses = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
            assert row["ce_with_sae"] == pytest.approx(
                losses[keep[:, :-1]].mean().item(), **rounding
            )


def test_fixed_budgets_keep_their_figures_and_each_budget_is_as_alone(
    calibrated: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    tokens = tiny_tokens[:12]
    settings: dict[str, Any] = {
        "mask": TokenMask.from_model(tiny_gemma2, slice(1, None)),
        "cross_entropy": False,
        "bootstrap": 20,
        "progress": False,
    }
    together = evaluate_budgets(calibrated, tiny_gemma2, tokens, BUDGETS, **settings)
    fixed = evaluate_budgets(calibrated, tiny_gemma2, tokens, [2, 8], **settings)
    assert "rule" not in fixed
    assert together[fixed.columns].head(2).astype(fixed.dtypes).equals(fixed)
    for n, budget in enumerate(BUDGETS[2:], 2):
        alone = evaluate_budgets(calibrated, tiny_gemma2, tokens, [budget], **settings)
        row = together.iloc[[n]].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, row[alone.columns], check_dtype=False, rtol=1e-9)


def test_activations_alone_and_several_saes(
    sae: HierarchicalTopKSAE, acts: torch.Tensor, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    x = acts.repeat(3, 1)
    calibrate(sae, x, progress=False)
    table = evaluate_activations(sae, x, [4, MeanBudget(4)], progress=False)
    assert table["l0"][1] == pytest.approx(4, rel=0.01)
    stock = sae.at_k(8)
    both = evaluate_saes(
        {"ours": sae, "stock": stock},
        tiny_gemma2,
        tiny_tokens[:12],
        {"ours": [4, MeanBudget(4)], "stock": [4]},
        progress=False,
    )
    assert list(both["sae"]) == ["ours", "ours", "stock"]
    with pytest.raises(ValueError, match="There are no budgets for stock, only for ours"):
        evaluate_saes({"ours": sae, "stock": stock}, tiny_gemma2, tiny_tokens, {"ours": [4]})
    assert both["explained_variance"][0] == pytest.approx(both["explained_variance"][2])


def test_what_is_refused_before_any_work(sae: HierarchicalTopKSAE, acts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"The SAE cannot be judged so: .*no thresholds"):
        evaluate_activations(sae, acts, [MeanBudget(4)])
    with pytest.raises(ValueError, match=r"no thresholds"):
        all_budgets(sae, None, [4], [], "mine")
    calibrate(sae, acts.repeat(3, 1), progress=False)
    for budgets, said in (
        ([MeanBudget(9)], "A mean budget of 9 is outside 1..8"),
        ([MeanBudget(4), MeanBudget(2)], "must be ascending without repeats, got mean-4, mean-2"),
        ([4, 2, MeanBudget(2)], r"ascending without repeats, got \[4, 2\]"),
        ([], "budgets is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate_activations(sae, acts, budgets)
    with pytest.raises(ValueError, match=r"'topk' SAE is cut to a fixed number .*mean-4 needs a h"):
        evaluate_activations(sae.at_k(8), acts, [MeanBudget(4)])


def test_a_stock_sae_beside_is_judged_at_fixed_budgets(
    sae: HierarchicalTopKSAE, acts: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate(sae, acts.repeat(3, 1), progress=False)
    assert all_budgets(sae, [4], [2, 4], [0.5]) == [
        4, MeanBudget(2), MeanBudget(4), ErrorTarget(0.5)
    ]  # fmt: skip
    assert all_budgets(sae.at_k(8), [4], [2, 4], [], "stock") == [4]
    assert "Left out: mean budgets and error targets of stock, a stock SAE." in caplog.text


def test_tasks_at_mean_budgets(calibrated: HierarchicalTopKSAE, tiny_gemma2: Any) -> None:
    pairs = [Pair(f"{a} and {b} went", f"{b} and {a} went", " to", " of")
             for a in ("one", "two") for b in ("six", "ten")]  # fmt: skip
    task = tokenize_pairs("went", pairs, tiny_gemma2.tokenizer, 4, 2)
    table = evaluate_tasks(
        calibrated, tiny_gemma2, [task], [8, MeanBudget(2), ErrorTarget(2)], progress=False
    )
    assert list(table["rule"]) == ["fixed", "mean", "error"]
    alone = evaluate_tasks(calibrated, tiny_gemma2, [task], [MeanBudget(2)], progress=False)
    assert table["logit_diff"][1] == alone["logit_diff"][0]


@pytest.fixture
def saved(tmp_path: Path, gemma2_folder: Path) -> tuple[Path, list[str]]:
    """An SAE that is not calibrated, and how to say on what it can be."""
    training_sae(d_in=32, k=24).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.calibration is None
    sae.cfg.metadata.hook_name, sae.cfg.metadata.context_size = "blocks.1.hook_resid_post", 32
    sae.save_model(tmp_path / "sae")
    text = documents(tmp_path / "text.jsonl", 400)
    return tmp_path / "sae", ["--model", str(gemma2_folder), "--text", str(text)]


def test_a_saved_sae_is_calibrated_in_place(
    saved: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, on = saved
    export = ["export", str(folder), "--mean-k", "8", "--out", str(tmp_path / "stock")]
    assert main(export) == 1
    assert "hsae: This SAE has no thresholds for mean budgets" in capsys.readouterr().err
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["calibrate", str(folder), "--tokens", "4096", *on]) == 0
    shown = capsys.readouterr().out
    assert "On text that did not set the thresholds" in shown
    assert {file.name for file in folder.iterdir()} == set(before)
    assert (folder / "sae_weights.safetensors").read_bytes() == before["sae_weights.safetensors"]
    config, former = json.loads((folder / "cfg.json").read_text()), json.loads(before["cfg.json"])
    assert {name for name in config if config[name] != former[name]} == {"calibration", "metadata"}
    sae = SAE.load_from_disk(folder)
    assert 2000 < sae.calibration.tokens < 4096 * 0.75
    means = [row for row in sae.cfg.metadata.frontier if row["rule"] == "mean"]
    for row in means:
        assert row["l0"] == pytest.approx(row["k"], rel=0.25)
    assert [row["k"] for row in means] == [1, 2, 4, 8, 16, 24]
    assert main(export) == 0
    assert "a JumpReLU SAE that uses 8 latents on average" in capsys.readouterr().out
    stock = SAE.load_from_disk(tmp_path / "stock")
    x = torch.randn(50, 32)
    with sae.using_budget(MeanBudget(8)):
        assert torch.equal(stock(x), sae(x))


def test_where_a_calibrated_copy_goes(
    saved: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, on = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    copy = ["calibrate", str(folder), *on, "--tokens", "2048", "--out", str(tmp_path / "copy")]
    assert main(copy) == 0
    assert SAE.load_from_disk(tmp_path / "copy").calibration.tokens > 512
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert main(copy) == 1
    assert "copy is not empty. Give another folder." in capsys.readouterr().err
    assert main(["calibrate", "smollm2-135m-res-htopk/blocks.15.hook_resid_post"]) == 1
    assert "give one for a copy (--out)" in capsys.readouterr().err
    assert main([*copy[:-1], str(tmp_path / "c"), "--tokens", "256"]) == 1
    assert "too few to calibrate mean budgets" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert main([*copy[:-1], str(tmp_path / "c"), "--tokens", "64"]) == 1
    assert "2 sequences of 32 tokens are too few: three of four" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*copy[:-1], str(tmp_path / "file")]) == 1
    assert "file is a file. Give a folder to write." in capsys.readouterr().err


def test_a_training_checkpoint_stays_one(saved: tuple[Path, list[str]], tmp_path: Path) -> None:
    _, on = saved
    trained = training_sae(d_in=32, k=24)
    trained.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    trained.cfg.metadata.context_size = 32
    trained.save_model(tmp_path / "checkpoint")
    assert main(["calibrate", str(tmp_path / "checkpoint"), "--tokens", "2048", *on]) == 0
    config = json.loads((tmp_path / "checkpoint" / "cfg.json").read_text())
    assert config["rescale_acts_by_decoder_norm"] is True
    assert len(config["calibration"]["thresholds"]) == 24
    again = type(trained).load_from_disk(tmp_path / "checkpoint")
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in trained.state_dict().items())
