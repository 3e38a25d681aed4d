"""``hsae convert``: from an SAE for one budget to one for every budget, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.command import hsae
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAE
from hsae_lens._util.private_names import InterruptedException
from hsae_lens.conversion import ConvertConfig, convert_sae
from hsae_lens.conversion.finetuning import SettlingTrainer
from hsae_lens.conversion.moved import latents_moved, movement
from hsae_lens.conversion.reordering import settle, train_only_gains_and_biases

HOOK, D_IN, D_SAE, K = "blocks.1.hook_resid_post", 32, 64, 8


def write_source(folder: Path, model: Path, architecture: str = "topk", **facts: Any) -> Path:
    """A stock SAE that reads its own transpose, so that it explains something untrained."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    sae: Any = (
        TopKSAE(TopKSAEConfig(**shape, k=K))
        if architecture == "topk"
        else JumpReLUSAE(JumpReLUSAEConfig(**shape))
    )
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1))
        sae.W_enc.copy_(sae.W_dec.T / 2)
        if architecture == "jumprelu":
            sae.threshold.copy_(torch.rand(D_SAE) / 4 + 0.2)
    said = {"model_name": str(model), "hook_name": HOOK, "context_size": 32}
    for name, value in (said | facts).items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


def settings(folder: Path, **others: Any) -> ConvertConfig:
    given: dict[str, Any] = {
        "out": str(folder / "converted"),
        "steps": 40,
        "batch_size": 128,
        "train_tokens": 4000,
        "eval_tokens": 1000,
        "dtype": "float32",
    }
    return ConvertConfig(**(given | others))


def explained(table: pd.DataFrame, name: str) -> pd.Series:
    return table[table["sae"] == name].set_index("k")["explained_variance"]


def test_small_budgets_gain_and_everything_is_left_there(
    tmp_path: Path, gemma2_folder: Path
) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    conversion = convert_sae(source, settings(tmp_path))
    before, after = (explained(conversion.frontier, name) for name in ("before", "after"))
    assert list(before.index) == [1, 2, 4, 8]
    assert (after > before).all()
    out = tmp_path / "converted"
    assert {f.name for f in out.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "README.md", "convert.json", "frontier.csv",
        "frontier.png", "latents.csv",
    }  # fmt: skip
    sae = HierarchicalTopKSAE.load_from_disk(out)
    assert sae.cfg.calibration, "thresholds for mean budgets come with it"
    assert sae.cfg.metadata.hook_name == HOOK
    assert sae.cfg.metadata.model_name == str(gemma2_folder)
    card = (out / "README.md").read_text()
    assert str(source) in card
    assert "| its licence | not stated |" in card
    assert "Not measured" not in card
    line = next(line for line in card.splitlines() if line.startswith("sae = "))
    exec(f"import hsae_lens\n{line}", {})
    facts = json.loads((out / "convert.json").read_text())
    assert facts["seen"][0][0] == 0
    assert facts["moved"].keys() == {"cosine", "cosine_5%", "top_kept", "silent"}


def test_without_a_step_it_is_the_source(tmp_path: Path, gemma2_folder: Path) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    conversion = convert_sae(source, settings(tmp_path, steps=0))
    before, after = (explained(conversion.frontier, name) for name in ("before", "after"))
    assert (before == after).all()
    assert movement(conversion.moved)["cosine"] == pytest.approx(1)
    x = torch.randn(30, D_IN)
    converted = HierarchicalTopKSAE.load_from_disk(tmp_path / "converted")
    torch.testing.assert_close(converted(x), SAE.load_from_disk(source)(x))


def test_only_reordering_keeps_every_direction(tmp_path: Path, gemma2_folder: Path) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    conversion = convert_sae(source, settings(tmp_path, only_reorder=True, lr=0.05))
    before, after = (explained(conversion.frontier, name) for name in ("before", "after"))
    assert after.mean() > before.mean() + 0.01, "nothing was learnt"
    was, now = SAE.load_from_disk(source), SAE.load_from_disk(tmp_path / "converted")
    torch.testing.assert_close(now.W_dec, was.W_dec)
    torch.testing.assert_close(now.b_dec, was.b_dec)
    gains = now.W_enc / was.W_enc
    torch.testing.assert_close(gains, gains[:1].expand_as(gains), rtol=1e-3, atol=1e-4)
    assert (gains[0] - 1).abs().max() > 0.01
    assert conversion.moved["cosine"].min() == pytest.approx(1, abs=1e-5)


def test_gains_and_biases_have_the_gradients_of_the_weights_they_make() -> None:
    stock = TopKSAE(TopKSAEConfig(d_in=7, d_sae=20, k=3))
    plain, reordering = (HierarchicalTopKTrainingSAE.from_sae(stock).double() for _ in range(2))
    x = torch.randn(50, 7, dtype=torch.float64)
    train_only_gains_and_biases(reordering, x)
    from sae_lens.saes.sae import TrainStepInput

    for sae in (plain, reordering):
        step = TrainStepInput(x, {}, None, n_training_steps=1, is_logging_step=False)
        sae.training_forward_pass(step).loss.backward()
    parts: Any = reordering.parametrizations
    assert plain.W_enc.grad is not None
    torch.testing.assert_close(
        parts.W_enc.original.grad, (plain.W_enc.grad * plain.W_enc.detach()).sum(0)
    )
    torch.testing.assert_close(parts.b_enc.original.grad, plain.b_enc.grad * parts.b_enc[0].unit)
    assert reordering.W_dec.grad is None
    settle(reordering)
    settle(reordering)
    torch.testing.assert_close(reordering.state_dict(), plain.state_dict())


def test_a_jumprelu_stands_beside_as_it_was(tmp_path: Path, gemma2_folder: Path) -> None:
    source = write_source(tmp_path / "source", gemma2_folder, "jumprelu")
    with pytest.raises(ValueError, match="--k"):
        convert_sae(source, settings(tmp_path))
    conversion = convert_sae(source, settings(tmp_path, k=8))
    table = conversion.frontier.set_index("sae")
    itself = table.loc["the source itself"]
    assert itself["k"] == round(itself["l0"])
    assert 0 < itself["explained_variance"] < 1
    assert (
        explained(conversion.frontier, "after") > explained(conversion.frontier, "before")
    ).all()


def test_it_ends_when_the_frontier_no_longer_moves(
    tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    rates = []
    step = SettlingTrainer.step

    def noting(self: SettlingTrainer, batch: torch.Tensor) -> Any:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, batch)

    monkeypatch.setattr(SettlingTrainer, "step", noting)
    conversion = convert_sae(source, settings(tmp_path, steps=200, lr=1e-7))
    assert conversion.steps == 24, "looked at 0 and 20, then a fifth of that"
    assert [step for step, _ in conversion.seen] == [0, 20]
    assert rates[20] > 0.9e-7
    assert rates[20] > rates[21] > rates[22] > rates[23]


def test_what_is_cached_is_trained_on(tmp_path: Path, gemma2_folder: Path) -> None:
    from hsae_lens.models.opening import open_model
    from hsae_lens.models.tokenizing import sample_tokens
    from hsae_lens.training.activation_cache import cache_activations

    source = write_source(tmp_path / "source", gemma2_folder)
    model = open_model(gemma2_folder, dtype="float32")
    tokens, _ = sample_tokens(None, model.tokenizer, 32, 4000)
    cache_activations(model, tokens, HOOK, tmp_path / "cache")
    cfg = settings(tmp_path, cached_activations=str(tmp_path / "cache"))
    frontier = convert_sae(source, cfg).frontier
    assert (explained(frontier, "after") > explained(frontier, "before")).all()
    for others, match in (
        ({"context_size": 64}, "must hold rows of blocks.1.hook_resid_post of 64 tokens"),
        ({"hook_name": "blocks.0.hook_resid_post"}, "must hold rows of blocks.0"),
        ({"cached_activations": str(tmp_path)}, "holds no cached activations"),
    ):
        with pytest.raises(ValueError, match=match):
            convert_sae(source, replace(cfg, **others))


def test_moved_tells_latents_that_changed_from_those_that_did_not(tmp_path: Path) -> None:
    stock = TopKSAE(TopKSAEConfig(d_in=6, d_sae=10, k=4))
    HierarchicalTopKTrainingSAE.from_sae(stock).save_inference_model(tmp_path)
    before, after = (HierarchicalTopKSAE.load_from_disk(tmp_path) for _ in range(2))
    with torch.no_grad():
        after.W_dec[3] *= -1
        after.W_enc[:, 5] *= -1
        after.b_enc[7] = -1e6
    x = torch.randn(700, 6)
    moved = latents_moved(before, after, x)
    assert moved["cosine"].round(3).tolist() == [1, 1, 1, -1, 1, 1, 1, 1, 1, 1]
    assert moved["top_kept"][5] == 0
    assert moved["used_after"][7] == 0
    assert moved["used_before"][7] > 0
    assert moved["top_kept"][[0, 1, 2]].mean() > 0.7
    used = (before.encode(x) > 0).float().mean(0)
    torch.testing.assert_close(torch.tensor(moved["used_before"]).float(), used)


@pytest.mark.parametrize(
    ("others", "match"),
    [
        ({"steps": -1}, "steps must be 0 or more"),
        ({"lr": 2.0}, "between 0 and 1"),
        ({"budget_weights": "lineer"}, "linear"),
        ({"text": "nowhere.txt"}, "No text at"),
        ({"cached_activations": "nowhere"}, "No folder of activations"),
        ({"hook_name": "blocks.9.hook_resid_post"}, "blocks"),
        ({"hook_name": "blocks.0.mlp.hook_post"}, "d_in is 32"),
        ({"k": 65}, "d_sae"),
        ({"context_size": 1}, "2 or more"),
        ({"context_size": 300}, "longer than the 256"),
    ],
)
def test_bad_settings_are_said_before_anything_is_trained(
    others: dict[str, Any], match: str, tmp_path: Path, gemma2_folder: Path
) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        convert_sae(source, settings(tmp_path, **others))
    assert not (tmp_path / "converted").exists()


def test_what_the_source_does_not_say_is_asked_for(tmp_path: Path, gemma2_folder: Path) -> None:
    no_hook = write_source(tmp_path / "no-hook", gemma2_folder, hook_name=None)
    with pytest.raises(ValueError, match="--hook-name"):
        convert_sae(no_hook, settings(tmp_path))
    no_model = write_source(tmp_path / "no-model", gemma2_folder, model_name=None)
    with pytest.raises(ValueError, match="--model"):
        convert_sae(no_model, settings(tmp_path))
    given = settings(tmp_path, model=str(gemma2_folder), hook_name=HOOK, steps=2)
    assert convert_sae(no_hook, given).steps == 2


def test_a_failure_leaves_what_was_there(
    tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    convert_sae(source, settings(tmp_path, steps=0))
    out = tmp_path / "converted"
    before = {file: file.read_bytes() for file in out.iterdir()}

    def fails(*_: Any) -> None:
        raise OSError("no room for a picture")

    monkeypatch.setattr("hsae_lens.conversion.result.plot_frontier", fails)
    with pytest.raises(OSError, match="no room for a picture"):
        convert_sae(source, settings(tmp_path))
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_nothing_else_is_replaced(tmp_path: Path, gemma2_folder: Path) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    with pytest.raises(ValueError, match="is the source itself"):
        convert_sae(source, settings(tmp_path, out=str(source)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="not of a conversion"):
        convert_sae(source, settings(tmp_path, out=str(tmp_path / "mine")))
    with pytest.raises(ValueError, match="is a file"):
        convert_sae(source, settings(tmp_path, out=str(tmp_path / "mine" / "README.md" / "x")))


def test_outliers_are_found_before_the_frontier_is_looked_at(
    tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few tokens of many times the usual length, which the source has a latent for."""
    from hsae_lens.conversion import run
    from hsae_lens.models.opening import open_model

    model: Any = open_model(gemma2_folder, dtype="float32")
    token = model.tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.W_E[token] *= 200
    monkeypatch.setattr(run, "open_model_of", lambda *_: model)
    _, cache = model.run_with_cache(torch.tensor([[2, token, token]]), names_filter=HOOK)
    source = write_source(tmp_path / "source", gemma2_folder)
    stock: Any = SAE.load_from_disk(source)
    with torch.no_grad():
        stock.W_dec[0] = torch.nn.functional.normalize(cache[HOOK][0, 1], dim=-1)
        stock.W_enc[:, 0] = stock.W_dec[0]
    stock.save_model(source)
    conversion = convert_sae(source, settings(tmp_path, steps=100, eval_tokens=4000))
    first, second = (sum(frontier) for _, frontier in conversion.seen[:2])
    assert first < second, "outliers were judged at first, and then no longer"
    assert conversion.steps == 100


@pytest.mark.parametrize(
    "others", [{"train_tokens": 400}, {"batch_size": 4096, "steps": 2}, {"context_size": 200}]
)
def test_little_text_and_large_batches_train(
    others: dict[str, Any], tmp_path: Path, gemma2_folder: Path
) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    steps = others.get("steps", 5)
    assert convert_sae(source, settings(tmp_path, **{"steps": steps, **others})).steps == steps


def test_positions_and_facts_are_the_source_s(
    tmp_path: Path, gemma2_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"model_name": "their/name", "open_with": str(gemma2_folder), "seqpos_slice": (4, 20),
             "prepend_bos": False, "source_licence": "mit",
             "converted_from": "elsewhere"}  # fmt: skip
    source = write_source(tmp_path / "source", gemma2_folder, **facts)
    conversion = convert_sae(source, settings(tmp_path, steps=2))
    sae = HierarchicalTopKSAE.load_from_disk(tmp_path / "converted")
    for name in ("model_name", "open_with", "prepend_bos", "source_licence"):
        assert sae.cfg.metadata[name] == facts[name]
    assert sae.cfg.metadata.seqpos_slice == [4, 20]
    assert str(sae.cfg.metadata.converted_from).endswith("converted from elsewhere")
    n_sequences = 1000 // 32
    assert conversion.frontier["tokens"].max() <= 16 * n_sequences
    assert "trained without BOS" in caplog.text


def test_the_command_shows_both_frontiers(tmp_path: Path, gemma2_folder: Path) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    flags = ["--steps", "20", "--batch-size", "128", "--train-tokens", "4000", "--eval-tokens"]
    said = hsae("convert", str(source), "--out", str(tmp_path / "out"), *flags, "1000")
    assert "before" in said.stdout
    assert "after" in said.stdout
    assert "20 steps in" in said.stdout


def test_an_interruption_leaves_nothing_and_says_so(
    tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    source = write_source(tmp_path / "source", gemma2_folder)
    look = SettlingTrainer.look

    def stopped(self: SettlingTrainer, total: int) -> None:
        look(self, total)
        if self.n_training_steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SettlingTrainer, "look", stopped)
    with pytest.raises(InterruptedException):
        convert_sae(source, settings(tmp_path))
    assert "nothing of this conversion is kept" in caplog.text
    assert not (tmp_path / "converted").exists()
