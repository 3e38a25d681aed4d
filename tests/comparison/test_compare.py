"""``hsae compare``: all families alike, resumed where it stopped, and figures that are right."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig

from hsae_lens.comparison import CompareConfig, cells, run_compare, study
from hsae_lens.comparison import material as materials
from hsae_lens.comparison.cells import FIRST, Cell, CellFolder, spend_on_average
from hsae_lens.comparison.config import QUICK, with_presets
from hsae_lens.comparison.families import FAMILIES, Shape
from hsae_lens.comparison.material import VALIDATION, HeldOut, Material, collect, some_documents
from hsae_lens.comparison.regret import all_rows, regret_table
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

FAMILIES_HERE = ["hierarchical", "topk", "batchtopk", "frozen-decoder"]


def settings(folder: Path, model: Path, **others: Any) -> CompareConfig:
    given: dict[str, Any] = {
        "out": str(folder),
        "model": str(model),
        "hook_name": "blocks.1.hook_resid_post",
        "families": FAMILIES_HERE,
        "budgets": [1, 4],
        "seeds": 2,
        "steps": 8,
        "batch_size": 64,
        "d_sae": 64,
        "learning_rates": [3e-3],
        "train_tokens": 2000,
        "eval_tokens": 4000,
        "ce_tokens": 128,
        "context_size": 32,
        "dtype": "float32",
    }
    return CompareConfig(**{**given, **others})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, gemma2_folder: Path) -> CompareConfig:
    """A comparison that is done."""
    cfg = settings(tmp_path_factory.mktemp("compare") / "runs", gemma2_folder)
    run_compare(cfg)
    return cfg


@pytest.fixture
def a_copy(compared: CompareConfig, tmp_path: Path) -> CompareConfig:
    """One to add to."""
    shutil.copytree(compared.out, tmp_path / "copy")
    return replace(compared, out=str(tmp_path / "copy"))


def test_every_family_has_its_rows(compared: CompareConfig) -> None:
    frontier = pd.read_csv(Path(compared.out) / "frontier.csv")
    fixed = frontier[(frontier["rule"] == "fixed") & (frontier["text"] == "same kind")]
    assert fixed.groupby("family", sort=False)["k"].apply(list).to_dict() == {
        "hierarchical": [1, 4],
        "topk": [1, 4],
        "frozen-decoder": [1, 4],
        "truncated": [1],
    }
    assert set(frontier["seeds"]) == {2}
    assert set(frontier["text"]) == {"same kind", "other kind"}
    assert frontier["ce_score"].notna().all()
    on_average = frontier[(frontier["family"] == "batchtopk") & (frontier["text"] == "same kind")]
    assert list(on_average["rule"]) == ["mean", "mean"]
    assert (on_average["l0"] / on_average["k"]).between(0.5, 1.5).all(), "on other text"


def test_regret_is_the_specialists_figure_minus_ours(compared: CompareConfig) -> None:
    folder = Path(compared.out)
    rows = pd.concat([CellFolder(cell).rows() for cell in (folder / "cells").iterdir()])
    rows = rows[(rows["text"] == "other kind") & (rows["rule"] == "fixed") & (rows["k"] == 4)]
    by_family = {name: part["explained_variance"] for name, part in rows.groupby("family")}
    regret = pd.read_csv(folder / "regret_explained_variance.csv")
    here = (regret["text"] == "other kind") & (regret["rule"] == "fixed") & (regret["k"] == 4)
    (row,) = regret[here & (regret["one"] == "hierarchical")].to_dict("records")
    assert row["regret"] == pytest.approx(
        by_family["topk"].mean() - by_family["hierarchical"].mean()
    )
    assert row["interval"] > 0
    assert set(regret["one"]) == {"hierarchical"}, "a control is no rival"


def test_the_page_says_where_one_sae_wins(compared: CompareConfig) -> None:
    page = (Path(compared.out) / "compare.html").read_text()
    assert "the one SAE is ahead of the best specialist at k = " in page
    assert page.count("<svg") == 4, "two qualities, two kinds of text"
    assert (Path(compared.out) / "compare.png").stat().st_size > 10_000


def test_what_is_there_is_not_made_again(
    a_copy: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    really_train = study.train_cell

    def train(cell: Cell, *others: Any) -> None:
        trained.append(cell.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        really_train(cell, *others)

    monkeypatch.setattr(study, "train_cell", train)
    more = replace(a_copy, seeds=3, families=["topk"])
    with pytest.raises(KeyboardInterrupt):
        run_compare(more)
    tables = run_compare(more)
    first, second = "topk-k1-lr0.003-seed2", "topk-k4-lr0.003-seed2"
    assert trained == [first, second, second], "only what was missing, the stopped one again"
    seeds = tables["frontier"].set_index("family")["seeds"]
    assert set(seeds["topk"]) == {3}
    assert set(seeds["hierarchical"]) == {2}, "what other commands compared stays in the tables"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"d_sae": 32}, "was begun with d_sae 64, not 32: SAEs of one comparison share all but"),
        ({"hook_name": "blocks.0.hook_resid_post"}, "was begun with hook_name blocks.1"),
        ({"budgets": [1, 4, 8]}, "was begun with k 4, not 8"),
        ({"families": ["hierachical"]}, "Unknown family 'hierachical'.*hierarchical"),
        ({"budgets": [4, 1]}, "ascending"),
        ({"budgets": [1, 128]}, "more than the 64 latents"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"learning_rates": [3.0]}, "learning_rates must be between 0 and 1"),
        ({"learning_rates": [1e-3, 1.00000001e-3]}, "must differ in their first six digits"),
        ({"eval_tokens": 9}, "eval_tokens must be 10 or more"),
        ({"families": ["matryoshka"], "d_sae": 15}, "matryoshka needs a d_sae of 16 or more"),
        ({"text": "nowhere.txt"}, "No text at nowhere.txt"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_opened(
    given: dict[str, Any], says: str, compared: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsae_lens.comparison.run.open_model", None)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        run_compare(replace(compared, **given))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 10_000}, "tokens are left to train on: 640,000 would be seen"),
        ({"eval_tokens": 64}, "documents; intervals need 10"),
        ({"train_tokens": 300}, "thresholds of mean budgets take 512"),
    ],
)
def test_too_little_text_is_refused_before_anything_is_trained(
    given: dict[str, Any], says: str, tmp_path: Path, gemma2_folder: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        run_compare(settings(tmp_path / "runs", gemma2_folder, **given))
    assert not (tmp_path / "runs").exists()


def test_a_budget_that_is_added_is_judged_of_the_one_sae_too(a_copy: CompareConfig) -> None:
    table = run_compare(replace(a_copy, budgets=[1, 2, 4], seeds=1))["regret explained_variance"]
    assert set(table["k"]) == {1, 2, 4}


def test_a_budget_that_is_not_asked_for_again_stays(a_copy: CompareConfig) -> None:
    tables = run_compare(replace(a_copy, budgets=[2, 4], families=["hierarchical", "topk"]))
    frontier = tables["frontier"]
    fixed = frontier[(frontier["rule"] == "fixed") & (frontier["text"] == "same kind")]
    at = fixed.groupby("family")["k"].apply(list)
    assert at["hierarchical"] == [1, 2, 4]
    assert at["truncated"] == [1, 2]
    regret = tables["regret explained_variance"]
    assert set(regret["k"]) == {1, 2, 4}
    assert set(regret["seeds"]) == {2}


def test_judging_again_leaves_errors_of_its_rows_or_no_rows(
    a_copy: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cells, "write_csv", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_compare(replace(a_copy, budgets=[1, 2, 4], families=["hierarchical"]))
    for place in map(CellFolder, (Path(a_copy.out) / "cells").iterdir()):
        if place.is_judged:
            rows, errors = place.rows(), place.errors()
            assert {kind: len(of) for kind, of in errors.items()} == dict(rows.value_counts("text"))
    run_compare(a_copy)


def test_rates_of_many_digits_are_not_lost(tmp_path: Path, gemma2_folder: Path) -> None:
    """Nor where learning_rates.json has six of them, as it had before."""
    cfg = settings(
        tmp_path / "runs", gemma2_folder, families=["topk"], learning_rates=[0.0031622776]
    )
    assert set(run_compare(cfg)["frontier"]["k"]) == {1, 4}
    file = Path(cfg.out) / "learning_rates.json"
    rates = json.loads(file.read_text())
    for budget in (1, 4):
        assert rates[f"topk k={budget}"]["best"] == 0.0031622776
        rates[f"topk k={budget}"]["best"] = 0.00316228
    file.write_text(json.dumps(rates))
    frontier = run_compare(replace(cfg, seeds=3))["frontier"]
    assert set(frontier["seeds"]) == {3}


def test_a_specialist_has_the_rate_that_is_best_at_its_budget(
    tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that is best at another: a rival for few latents would be weaker than it is."""
    wanted = {("topk", 1): 4e-3, ("topk", 4): 1e-3, ("hierarchical", 4): 2e-3}

    def validated(_: Any, __: Any, place: CellFolder) -> float:
        cell = place.cell
        return -abs(cell.lr - wanted[cell.family, cell.budget])

    monkeypatch.setattr(study, "validated", validated)
    rates = [1e-3, 2e-3, 4e-3]
    families = ["hierarchical", "topk"]
    cfg = settings(
        tmp_path / "runs", gemma2_folder, families=families, learning_rates=rates, seeds=1
    )
    run_compare(cfg)
    judged = [place.cell for place in study.Study(cfg).chosen()]
    assert {(cell.family, cell.budget): cell.lr for cell in judged} == wanted


def test_every_family_has_thresholds_from_the_same_tokens(
    tmp_path: Path, gemma2_folder: Path
) -> None:
    """Of training tokens, however few the steps saw."""
    cfg = settings(
        tmp_path / "runs", gemma2_folder, families=["hierarchical", "batchtopk"], seeds=1, steps=2
    )
    assert "mean" in set(run_compare(cfg)["regret explained_variance"]["rule"])
    train = materials.read_material(Path(cfg.out) / "activations").train
    (cell,) = (Path(cfg.out) / "cells").glob("hierarchical-*")
    sae = CellFolder(cell).sae("cpu")
    assert isinstance(sae, HierarchicalTopKSAE)
    assert sae.calibration.tokens == min(FIRST, len(train))


def test_too_few_tokens_that_count_are_refused(
    tmp_path: Path, gemma2_folder: Path, tiny_gemma2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_kept, most = materials.kept_activations, VALIDATION + 600

    def kept(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, sequences = really_kept(*given)
        return x[:most], sequences[:most]

    monkeypatch.setattr(materials, "kept_activations", kept)
    cfg = settings(tmp_path / "runs", gemma2_folder, batch_size=700)
    with pytest.raises(ValueError, match="600 tokens are left to train on: a batch is of 700"):
        collect(cfg, tiny_gemma2)
    really_held, small = materials._held_out, slice(0, 0)

    def held(*given: Any) -> HeldOut:
        part = really_held(*given)
        return HeldOut(part.activations[small], part.documents[small], part.tokens)

    monkeypatch.setattr(materials, "_held_out", held)
    with pytest.raises(ValueError, match="same kind has 0 documents"):
        collect(replace(cfg, batch_size=64), tiny_gemma2)


def test_a_damaged_folder_is_said(tmp_path: Path, gemma2_folder: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study.json is damaged .*: remove the whole folder"):
        run_compare(settings(tmp_path, gemma2_folder))


def test_saes_of_an_unknown_comparison_are_refused(a_copy: CompareConfig) -> None:
    (Path(a_copy.out) / "study.json").unlink()
    with pytest.raises(ValueError, match=r"copy holds SAEs .* no study.json .* the whole folder"):
        run_compare(replace(a_copy, d_sae=32))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("settings.json", "{", r"settings.json is damaged \(Expecting .*remove the folder"),
        ("settings.json", "{}", r"settings.json is damaged \('cell'\): remove the folder"),
        ("rows.csv", "", r"rows.csv is damaged \(No columns .*remove it"),
        ("rows.csv", "a,b\n1,2\n", r"rows.csv is damaged .*remove it"),
    ],
)
def test_a_damaged_cell_is_said(file: str, content: str, says: str, a_copy: CompareConfig) -> None:
    (cell,) = (Path(a_copy.out) / "cells").glob("topk-k4-*-seed0")
    (cell / file).write_text(content)
    with pytest.raises(ValueError, match=f"{cell.name}/{says}"):
        run_compare(a_copy)


def test_a_new_specialist_of_our_class_is_not_cut_and_judged_once(
    tmp_path: Path, gemma2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    really_judge = study.judge_cell

    def judge(cfg: CompareConfig, by: Any, place: CellFolder) -> None:
        judged.append(place.folder.name)
        really_judge(cfg, by, place)

    monkeypatch.setattr(study, "judge_cell", judge)
    monkeypatch.setitem(FAMILIES, "mine", replace(FAMILIES["topk"]))
    cfg = settings(tmp_path / "runs", gemma2_folder, families=["mine", "mine"], seeds=1)
    frontier = run_compare(cfg)["frontier"]
    assert set(frontier["family"]) == {"mine"}
    assert judged == ["mine-k1-lr0.003-seed0", "mine-k4-lr0.003-seed0"]


def test_no_family_leaves_out_what_others_are_trained_on() -> None:
    for family in FAMILIES.values():
        assert getattr(family.config(Shape(16, 64, (1, 4)), 4), "outlier_factor", None) is None


def test_on_known_features_it_says_how_many_are_found(tmp_path: Path) -> None:
    cfg = settings(
        tmp_path / "runs",
        Path("synthetic"),
        families=["hierarchical", "batchtopk"],
        n_features=96,
        true_l0=5.0,
        seeds=1,
    )
    tables = run_compare(cfg)
    frontier = tables["frontier"]
    assert set(frontier["text"]) == {"fresh samples"}
    assert frontier[["mcc", "mcc_used", "f1"]].notna().all(axis=None)
    assert "ce_score" not in frontier
    one = frontier[frontier["family"] == "hierarchical"]
    assert one["mcc"].nunique() == 1, "of the decoder alone, so of an SAE at any budget"
    regret = tables["regret mcc"].set_index("k")
    assert set(regret.index) == {1, 4}
    assert (Path(cfg.out) / "regret_f1.csv").exists()


def test_few_samples_are_judged_one_by_one(tmp_path: Path) -> None:
    cfg = settings(
        tmp_path / "runs",
        Path("synthetic"),
        families=["hierarchical", "topk"],
        n_features=96,
        true_l0=5.0,
        eval_tokens=20,
        seeds=1,
    )
    assert set(run_compare(cfg)["regret explained_variance"]["k"]) == {1, 4}


def test_quick_sets_what_was_left_at_its_default() -> None:
    quick = with_presets(CompareConfig(quick=True, steps=100))
    assert quick.steps == 100
    assert quick.d_sae == QUICK["d_sae"]


def test_short_documents_are_read_whole_and_of_long_ones_a_part() -> None:
    short, long = [f"{n:03}" + "x" * 97 for n in range(1000)], ["y" * 10_000] * 50
    chosen = some_documents(short, 40_000)
    assert len(chosen) == 400
    assert set(chosen) <= set(short)
    assert [len(text) for text in some_documents(long, 40_000)] == [800] * 50
    assert some_documents(long, 10**9) == long


def material(n: int = 4000, d_in: int = 16) -> Material:
    generator = torch.Generator().manual_seed(0)
    sparse = torch.rand(n, 64, generator=generator) * (torch.rand(n, 64, generator=generator) < 0.1)
    x = sparse @ torch.randn(64, d_in, generator=generator)
    held = HeldOut(x[:600], torch.arange(600) // 30, torch.empty(0, 2, dtype=torch.int64))
    return Material(x[600:], x[600:700], {"same kind": held}, float("inf"))


def test_batches_depend_on_the_seed_alone() -> None:
    first, again, other = (material().batches(1000, seed) for seed in (0, 0, 1))
    for _ in range(5):  # into the second epoch
        a = next(first)
        assert torch.equal(a, next(again))
        assert not torch.equal(a, next(other))


@pytest.mark.parametrize("name", ["frozen-decoder", "soft-frozen-decoder", "frozen-encoder"])
def test_what_is_frozen_stays(name: str, tmp_path: Path) -> None:
    from sae_lens.config import SAETrainerConfig

    from hsae_lens.comparison.families import train

    torch.manual_seed(0)
    sae: Any = FAMILIES[name].build(Shape(16, 32, (1, 4)), 4)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    cfg = SAETrainerConfig(200 * 64, 64, lr=0.03, lr_end=0.003, dead_feature_window=20)
    data = material()
    train(sae, data.batches(64, 0), cfg, data.train)
    sae.save_inference_model(tmp_path)
    after = sae.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    cosine = torch.cosine_similarity(before["W_dec"], after["W_dec"], dim=-1)
    if name == "soft-frozen-decoder":
        assert moved == {"W_enc", "b_enc", "W_dec", "b_dec"}
        assert cosine.min() == pytest.approx(0.8, abs=1e-5), "some went as far as they may"
    else:
        frozen = {"W_dec"} if name == "frozen-decoder" else {"W_enc", "b_enc"}
        assert moved == {"W_enc", "b_enc", "W_dec", "b_dec"} - frozen
    assert SAE.load_from_disk(tmp_path).cfg.architecture() == "hierarchical_topk"


def test_a_threshold_is_set_where_k_latents_are_used_on_average() -> None:
    torch.manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=16, d_sae=32))
    sae.W_enc.data.normal_()
    x = material().train
    spend_on_average(sae, 2.5, x)
    assert (sae.encode(x) > 0).sum(-1).double().mean().item() == pytest.approx(2.5, abs=1e-3)


def test_an_sae_of_which_nothing_fires_has_no_threshold() -> None:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=16, d_sae=32))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    spend_on_average(sae, 2.5, material().train)
    assert not sae.threshold.any()


class FakeCell(CellFolder):
    """A cell's figures, made up."""

    def __init__(self, rows: pd.DataFrame, errors: torch.Tensor) -> None:
        self._rows, self._errors = rows, errors

    def rows(self) -> pd.DataFrame:
        return self._rows

    def errors(self) -> dict[str, torch.Tensor]:
        return {"same kind": self._errors}


def made_up(family: str, l0: list[float], ev: list[float], k: list[int], seed: int) -> FakeCell:
    generator = torch.Generator().manual_seed(seed)
    rows = pd.DataFrame({"k": k, "l0": l0, "explained_variance": ev, "rule": "mean"})
    rows = rows.assign(family=family, seed=seed, text="same kind", place=range(len(k)))
    rows["trained_for"] = k if family != "hierarchical" else max(k)
    return FakeCell(rows, torch.rand(len(k), 20, generator=generator, dtype=torch.float64))


def test_mean_budgets_are_compared_at_the_same_l0() -> None:
    """Along log l0: 8 latents are half way from 4 to 16, and 32 as far beyond 16 again."""
    cells = []
    for seed in (0, 1):
        cells.append(made_up("hierarchical", [4.0, 16.0], [0.5, 0.7], [4, 16], seed))
        cells.append(made_up("batchtopk", [8.0], [0.65 + 0.01 * seed], [4], seed))
        cells.append(made_up("batchtopk", [32.0], [0.79], [16], seed))
    table = regret_table(cells, material()).set_index("k")
    assert table.loc[4, "of_one"] == pytest.approx(0.6)
    assert table.loc[4, "regret"] == pytest.approx(0.055)
    assert table.loc[16, "of_one"] == pytest.approx(0.8)
    assert table.loc[16, "regret"] == pytest.approx(-0.01)


def test_an_l0_twice_or_of_nothing_is_no_point_of_the_line() -> None:
    cells = [
        made_up("hierarchical", [0.0, 4.0, 4.0, 16.0], [0, 0.5, 0.5, 0.7], [1, 2, 4, 16], 0),
        made_up("batchtopk", [8.0], [0.65], [4], 0),
        made_up("batchtopk", [4.0], [0.55], [2], 0),
        made_up("batchtopk", [0.0], [0.0], [1], 0),
    ]
    table = regret_table(cells, material()).set_index("k")
    assert table["of_one"].to_dict() == pytest.approx({2: 0.5, 4: 0.6})
    assert np.isfinite(table[["regret", "interval"]]).all(axis=None)


def test_the_interval_is_of_seeds_and_documents() -> None:
    """Against a loop over resamples of documents, and Student's t for two seeds."""
    cells, data = [], material()
    for seed in (0, 1):
        cells.append(made_up("hierarchical", [4.0, 16.0], [0.5, 0.7], [4, 16], seed))
        cells.append(made_up("batchtopk", [4.0], [0.6 + 0.01 * seed], [4], seed))
    (row,) = regret_table(cells, data).to_dict("records")
    held = data.held["same kind"]
    x = held.activations.double().numpy()
    distance = ((x - x.mean(0)) ** 2).sum(-1)
    errors = [cell.errors()["same kind"][0].numpy() for cell in cells]
    differences = (errors[1] - errors[0] + errors[3] - errors[2]) / 2
    random, means = np.random.default_rng(0), []
    for _ in range(4000):
        drawn = random.integers(20, size=20)
        variance = sum(distance[held.documents.numpy() == d].sum() for d in drawn)
        means.append(-differences[drawn].sum() / variance)
    of_documents, of_seeds = 1.96 * np.std(means), 12.706 * 0.01 / 2
    assert row["interval"] == pytest.approx(np.hypot(of_documents, of_seeds), rel=0.05)
    assert len(all_rows(cells)) == 6
