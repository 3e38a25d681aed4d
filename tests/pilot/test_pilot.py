"""``hsae pilot``: within its time, from activations to a recipe that trains."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.command import hsae, says

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.comparison.material import SAME_KIND
from hsae_lens.pilot import PilotConfig, planning, run_pilot
from hsae_lens.pilot.confirming import SEEDS
from hsae_lens.pilot.folder import PilotFolder
from hsae_lens.pilot.in_short import PilotResult, pilot_in_short
from hsae_lens.pilot.points import Workbench
from hsae_lens.pilot.search import Findings, Point
from hsae_lens.training.recipe_flags import load_recipe

HOOK = "blocks.1.hook_resid_post"

OWN_METRIC = """
def largest_miss(x, x_hat):
    \'\'\'The largest miss of a token.\'\'\'
    return (x - x_hat).abs().amax(-1)
"""


def settings(folder: Path, model: Path, **others: Any) -> PilotConfig:
    given: dict[str, Any] = {
        "out": str(folder),
        "model": str(model),
        "hook_name": HOOK,
        "minutes": 5,  # steps end with the text, long before
        "d_sae": 64,
        "k": 8,
        "batch_size": 64,
        "training_tokens": 4000,
        "train_tokens": 3000,
        "eval_tokens": 2000,
        "ce_tokens": 128,
        "context_size": 32,
        "dtype": "float32",
    }
    return PilotConfig(**(given | others))


@pytest.fixture(scope="module")
def piloted(
    tmp_path_factory: pytest.TempPathFactory, gemma2_folder: Path
) -> tuple[PilotConfig, PilotResult, float]:
    """One that is done, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("pilot")
    (folder / "own.py").write_text(OWN_METRIC)
    metric = f"{folder / 'own.py'}:largest_miss"
    cfg = settings(folder / "runs", gemma2_folder, metrics=[metric])
    started = time.perf_counter()
    result = run_pilot(cfg)
    return cfg, result, time.perf_counter() - started


Piloted = tuple[PilotConfig, PilotResult, float]


def test_it_leaves_evidence_for_eight_points_or_more(piloted: Piloted) -> None:
    cfg, result, _ = piloted
    out = Path(cfg.out)
    points = pd.read_csv(out / "points.csv")
    assert len(points) == len(result.findings.points) >= 8
    assert points["mean explained variance"].between(0, 1).all()
    frontier = pd.read_csv(out / "frontier.csv")
    assert {"explained_variance", "ce_score", "largest_miss"} <= set(frontier)
    assert set(frontier["k"]) == {1, 2, 4, 8}
    assert (out / "pilot.png").stat().st_size > 10_000
    for folder in (out / "saes").glob("*/*"):
        assert HierarchicalTopKSAE.load_from_disk(folder).cfg.d_sae == 64


def test_the_page_begins_in_plain_words(piloted: Piloted) -> None:
    cfg, result, _ = piloted
    page = (Path(cfg.out) / "pilot.html").read_text()
    first_screen = page[: page.index("The evidence")]
    for heading in pilot_in_short(result).points:
        assert heading in first_screen
    assert "takes 4 trainings" in first_screen
    assert "Activations explained" in first_screen
    assert "The largest miss of a token" in first_screen, "the docstring of the own metric"
    assert page.count("<svg") == 2
    assert "<img" not in page, "it fetches nothing"


def test_the_recipe_is_the_defaults_or_a_better_one(piloted: Piloted) -> None:
    cfg, result, _ = piloted
    recipe = load_recipe(str(cfg.recipe_file))
    chosen = result.settings
    assert (chosen == result.findings.default) or result.confirmed.holds
    assert float(recipe["lr"]) == chosen.lr
    assert recipe["budget_weights"] == chosen.budget_weights
    same = result.confirmed.frontier[result.confirmed.frontier["text"] == SAME_KIND]
    means = same.groupby("sae")["explained_variance"].mean()
    if result.confirmed.gain is not None:
        assert result.confirmed.gain == pytest.approx(means["recommended"] - means["defaults"])


def test_the_recipe_trains(piloted: Piloted, tmp_path: Path) -> None:
    cfg, _, _ = piloted
    hsae(
        "train", "--recipe", str(cfg.recipe_file), "--output_path", str(tmp_path / "sae"),
        "--checkpoint_path", str(tmp_path / "checkpoints"),
    )  # fmt: skip
    sae = HierarchicalTopKSAE.load_from_disk(tmp_path / "sae")
    assert (sae.cfg.d_sae, sae.cfg.k) == (64, 8)


def test_a_recipe_that_is_there_is_not_overwritten(
    piloted: Piloted, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, _, _ = piloted
    before = cfg.recipe_file.read_text()
    code, _, errors = says(capsys, "pilot", "--model", cfg.model, "--out", cfg.out)
    assert code != 0
    assert "which is not overwritten" in errors
    assert cfg.recipe_file.read_text() == before


@pytest.mark.parametrize("at", [4, "the end"])
def test_an_interrupted_pilot_goes_on(
    at: int | str, tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(tmp_path / "runs", gemma2_folder)
    trained: list[str] = []
    really = Workbench.save_trained
    usual = planning.Costs.longest_at_the_end

    def save_trained(self: Workbench, point: Point, folder: Path) -> float:
        timing = self.material.max_norm == math.inf
        if not timing:
            trained.append(point.name)
            if len(trained) == at or (at == "the end" and point.seed == SEEDS[-1]):
                raise KeyboardInterrupt
        return really(self, point, folder)

    # A recommendation there must be, and less time for it when the pilot goes on.
    monkeypatch.setattr(Findings, "settings_for", lambda found, steps: replace(found.best, lr=0.01))
    monkeypatch.setattr(Workbench, "save_trained", save_trained)
    with pytest.raises(KeyboardInterrupt):
        run_pilot(cfg)
    assert not cfg.recipe_file.exists()
    monkeypatch.setattr(Workbench, "save_trained", really)
    again: list[str] = []

    def counted(self: Workbench, point: Point, folder: Path) -> float:
        again.append(point.name)
        return really(self, point, folder)

    monkeypatch.setattr(Workbench, "save_trained", counted)
    monkeypatch.setattr(planning.Costs, "longest_at_the_end", lambda *of: usual(*of) - 1)
    result = run_pilot(cfg)
    assert again[0] == trained[-1], "the one it was at"
    assert not set(again) & set(trained[:-1])
    assert cfg.recipe_file.exists()
    assert PilotFolder(cfg.out).spent() > 0
    assert result.confirmed.gain is not None


def test_a_kill_leaves_nothing_that_is_refused(
    piloted: Piloted, tmp_path: Path, gemma2_folder: Path
) -> None:
    cfg = settings(tmp_path / "runs", gemma2_folder)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".text-4711.jsonl").write_text("cut sh")
    PilotFolder(cfg.out).check(cfg)
    done = piloted[0]
    shutil.copytree(done.out, tmp_path / "copy")
    again = replace(done, out=str(tmp_path / "copy"), recipe=str(tmp_path / "r.yaml"))
    (tmp_path / "copy" / "text.jsonl").unlink()
    run_pilot(again)
    assert (tmp_path / "copy" / "text.jsonl").stat().st_size > 1000, "the recipe trains on it"
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert recipe["dataset_path"] == str(tmp_path / "copy" / "text.jsonl")
    assert Path(recipe["output_path"]).is_absolute()
    train = tmp_path / "copy" / "activations" / "train.safetensors"
    train.write_bytes(train.read_bytes()[:1000])
    Path(tmp_path / "r.yaml").unlink()
    with pytest.raises(ValueError, match="activations is damaged"):
        run_pilot(again)


def test_a_short_text_is_not_read_for_ever(gemma2_folder: Path, tmp_path: Path) -> None:
    plan = planning.PilotPlan(300_000, 2000, 0.01, 0.0)
    assert plan.within(8000, 64).steps == planning.EPOCHS * 8000 // 64
    with pytest.raises(ValueError, match=r"gave 100 tokens to train on.*Give more text"):
        plan.within(100, 64)


def test_one_budget_alone_can_matter(tmp_path: Path, gemma2_folder: Path) -> None:
    result = run_pilot(settings(tmp_path / "runs", gemma2_folder, budgets=[8], ce_tokens=0))
    assert {k for point in result.findings.points for k in point.explained} == {8}


def test_a_folder_of_another_pilot_is_refused(piloted: Piloted, tmp_path: Path) -> None:
    cfg, _, _ = piloted
    shutil.copytree(cfg.out, tmp_path / "copy")
    begun = replace(cfg, out=str(tmp_path / "copy"), recipe=str(tmp_path / "another.yaml"))
    with pytest.raises(ValueError, match="was begun with k 8, not 4"):
        run_pilot(replace(begun, k=4))
    with pytest.raises(ValueError, match=r"was begun with hook_name blocks\.1"):
        run_pilot(replace(begun, hook_name="blocks.0.hook_resid_post"))
    state = tmp_path / "copy" / "pilot.json"
    state.write_text(state.read_text()[:40])
    with pytest.raises(ValueError, match=r"pilot\.json is damaged"):
        run_pilot(begun)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="not of a pilot"):
        run_pilot(replace(begun, out=str(tmp_path / "notes")))


def test_a_damaged_point_is_named(piloted: Piloted, tmp_path: Path) -> None:
    cfg, result, _ = piloted
    shutil.copytree(cfg.out, tmp_path / "copy")
    file = tmp_path / "copy" / "points" / f"{result.findings.points[2].point.name}.json"
    file.write_text(json.dumps({"point": {}, "seconds": 1.0}))
    with pytest.raises(ValueError, match="is damaged .* made again"):
        run_pilot(replace(cfg, out=str(tmp_path / "copy"), recipe=str(tmp_path / "r.yaml")))


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"minutes": 0.005}, r"too short for two points .* give [\d.]+ or more"),
        ({"minutes": 0}, "minutes must be above 0"),
        ({"k": 65}, "k is 65, more than the 64 latents"),
        ({"budgets": [4, 16]}, "The budget 16 is more than k, which is 8"),
        ({"hook_name": "blocks.0.attn.hook_pattern"}, "a number for each pair of tokens"),
        ({"hook_name": "blocks.9.hook_resid_post"}, "has no hook .* Did you mean"),
        ({"text": "nowhere.txt"}, "nowhere.txt"),
        ({"metrics": ["nowhere.py:f"]}, "no file nowhere.py"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    others: dict[str, Any], said: str, tmp_path: Path, gemma2_folder: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run_pilot(settings(tmp_path / "runs", gemma2_folder, **others))
    assert not (tmp_path / "runs").exists()


def test_too_little_text(tmp_path: Path, gemma2_folder: Path) -> None:
    (tmp_path / "short.txt").write_text("A short text. " * 30)
    cfg = settings(tmp_path / "runs", gemma2_folder, text=str(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match=r"(train on|documents|give more text)"):
        run_pilot(cfg)


def test_the_recipe_is_yaml_with_reasons(piloted: Piloted) -> None:
    cfg, _, _ = piloted
    text = cfg.recipe_file.read_text()
    assert text.startswith("# By hsae pilot.")
    assert yaml.safe_load(text)["hook_name"] == HOOK
    assert "# settled by the pilot" in text
