"""`hsae circuits` and `hsae latents` on real model code, and what they leave."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from helpers.circuits import HOOKS, PAIRS, save_small
from helpers.command import as_flags, hsae

from hsae_lens._util.tables import read_csv
from hsae_lens.circuits import attribute_budgets
from hsae_lens.circuits.config import CircuitsConfig
from hsae_lens.circuits.inputs import open_task
from hsae_lens.circuits.plots import circuit_figure
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.circuits.run import CIRCUIT_FILES, DRAWINGS, find_circuits
from hsae_lens.cli import main
from hsae_lens.releases.opening import open_sae

SHIPPED = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("circuits")
    arguments = f"--task sva --budgets 8,64 --pairs 16 --steps 1 --sizes 1,16 --out {out}".split()
    arguments += ["--dtype", "float32"]
    assert main(["circuits", "--sae", SHIPPED, *arguments]) == 0
    return out


def test_what_the_command_leaves(folder: Path) -> None:
    facts = json.loads((folder / "run.json").read_text())
    assert facts["task"] == "agreement"
    assert facts["accuracy"] == 1
    curve = pd.read_csv(folder / "curve.csv")
    assert list(curve["sae"].unique()) == ["the SAE", "random decoder", "neurons"]
    ours = curve[curve["sae"] == "the SAE"]
    assert set(ours["k"]) == {8, 64}
    assert (ours["metric_model"] > 4).all()
    # Latents only: a few are enough at k=64, and the controls' are not.
    at_64 = curve[(curve["k"] == 64) & (curve["nodes"] == 16)].set_index("sae")["faithfulness"]
    assert at_64["the SAE"] > 0.9
    assert at_64["random decoder"] < 0.5
    nodes = pd.read_csv(folder / "nodes.csv")
    latents = nodes[nodes["latent"] >= 0]
    assert (latents.sort_values(["k", "share"]).groupby("k").tail(1)["latent"] == 3307).all()
    assert set(nodes["position"]) <= {7, 8}  # the noun, and what comes before it
    # The smaller budget's circuit is part of the larger one's.
    nesting = pd.read_csv(folder / "nesting.csv")
    assert nesting["shared"].iloc[0] > 0.5
    described = pd.read_csv(folder / "latents.csv").set_index("latent")
    assert "are" in described.loc[3307, "promotes"]
    page = (folder / "circuits.html").read_text()
    assert page.count("<svg") == 3
    for words in ("keep", "Its nodes", "One circuit at every budget", "3307", "random decoder"):
        assert words in page
    assert 'src="' not in page  # one file, which fetches nothing
    assert 'href="http' not in page
    for name in ("curve.png", "graph.png"):
        assert (folder / name).stat().st_size > 10_000


def test_the_latents_of_a_circuit_have_a_page(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents.html"
    nodes = str(folder / "nodes.csv")
    assert main(["latents", SHIPPED, nodes, "--tokens", "1024", "--out", str(out)]) == 0
    page = out.read_text()
    assert '<h2 id="l3307">Latent 3307</h2>' in page
    assert "&#x27; are&#x27;" in page
    assert "rank 1–8" in page


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("replace", get_args(Replacement))
def test_whatever_replaces_a_node(
    settings: dict[str, Any],
    replace: Replacement,
    small_sae: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tiny_gemma2: Any,
) -> None:
    """Attribution is told. And no ``$``, no size and no budget above the width ends it."""
    cfg = CircuitsConfig(**settings, replace=replace, out=str(tmp_path))
    if replace == "zero":  # one with controls is enough
        cfg.sae = [small_sae]
    found = find_circuits(cfg)
    assert {file.name for file in tmp_path.iterdir()} == set(CIRCUIT_FILES) - {"edges.csv"}
    assert "$" in "".join(found.facts["tokens"])
    assert found.facts["dtype"] == "float32"
    assert "larger circuits are cut" in caplog.text
    # The first half's own attribution, by hand.
    task = open_task(settings["task"], tiny_gemma2.tokenizer, PAIRS).halves()[0]
    sae = open_sae(cfg.sae[0])
    by_hand = attribute_budgets(tiny_gemma2, sae, task, [4], replace=replace).nodes(4)
    shown = found.nodes[found.nodes["k"] == 4].head(5)
    assert list(shown["latent"]) == list(by_hand["latent"].head(5))
    assert list(shown["effect"]) == pytest.approx(list(by_hand["effect"].head(5)), rel=1e-4)
    if replace == "zero":
        assert "Left out: neurons at the budgets [40], above its 32" in caplog.text
        assert set(found.curve[found.curve["sae"] == "neurons"]["k"]) == {4}
        assert set(found.curve[found.curve["sae"] == "random decoder"]["k"]) == {4, 40}
    else:
        assert "No controls: they are made from hierarchical SAEs" in caplog.text


def test_budgets_by_token_are_further_curves(
    settings: dict[str, Any], calibrated_sae: str, small_sae: str, tmp_path: Path
) -> None:
    """As a process. Labels of their own, of controls too; what is not calibrated is left out."""
    flags = {name.replace("_", "-"): settings[name] for name in
             ("task", "model", "pairs", "steps", "dtype")}  # fmt: skip
    run = hsae("circuits", "--sae", calibrated_sae, "--beside", small_sae, *as_flags(flags),
               "--budgets", "4", "--sizes", "1,8", "--mean-budgets", "4,12.5",
               "--error-targets", "0.3,0.6", "--out", tmp_path)  # fmt: skip
    assert f"Left out: {small_sae} at mean-4, mean-12.5. This SAE has no thresholds" in run.stderr
    assert run.stderr.count("Attributing to") == 4  # once for all rules of a dictionary
    curve = read_csv(tmp_path / "curve.csv")
    assert list(curve.columns[:5]) == ["sae", "k", "rule", "target", "nodes"]
    labels = ["the SAE", "the SAE, on average", "the SAE, by error", small_sae]
    for control in ("random decoder", "neurons"):
        labels += [control, f"{control}, on average", f"{control}, by error"]
    assert list(curve["sae"].unique()) == labels
    for label, rows in curve.groupby("sae"):
        rule, target = ("mean", {4, 12.5}) if "average" in label else ("fixed", {4})
        if "by error" in label:
            rule, target = "error", {0.3, 0.6}
        assert set(rows["rule"]) == {rule}
        assert set(rows["target"]) == target
        assert set(rows["k"]) == ({32 if "neurons" in label else 40} if rule == "error" else target)
    assert (curve["metric_model"] == curve["metric_model"].iloc[0]).all()
    table = read_csv(tmp_path / "areas.csv")
    assert len(table) == 3 * 5 + 1
    assert table[["sae", "rule", "target"]].duplicated().sum() == 0
    nodes = read_csv(tmp_path / "nodes.csv")  # of the fixed budgets, as ever
    assert "rule" not in nodes
    page = (tmp_path / "circuits.html").read_text()
    for words in ("At budget k=4", "At 12.5 latents per token on average", "brought to 60%",
                  "“on average” the same"):  # fmt: skip
        assert words in page
    settings_kept = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert settings_kept["mean_budgets"] == [4, 12.5]


def test_two_sites_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    """Tables, picture and page have them in the model's order, though given upside down."""
    lower = "blocks.0.hook_resid_post"
    other = save_small(tmp_path / "lower", lower, stock=True)
    cfg = CircuitsConfig(**settings, out=str(tmp_path / "out"), controls=False)
    found = find_circuits(dataclasses.replace(cfg, sae=[*cfg.sae, other]))
    assert found.edges is not None
    assert set(found.edges["to_site"]) == {HOOKS[1]}
    assert (tmp_path / "out" / "edges.csv").exists()
    for _, nodes in pd.read_csv(tmp_path / "out" / "nodes.csv").groupby("k"):
        assert list(nodes["site"].unique()) == [lower, HOOKS[1]]
    figure = circuit_figure(found.nodes, found.facts["tokens"], found.facts["answer"], found.edges)
    heights = {text.get_text(): text.xy[1] for text in figure.axes[0].texts}
    assert heights[lower] < heights[HOOKS[1]]
    page = (tmp_path / "out" / "circuits.html").read_text()
    cells = page[page.index("Its nodes") :]
    assert cells.index(f"<td>{lower}") < cells.index(f"<td>{HOOKS[1]}")
    assert cells.rindex(f"<td>{lower}", 0, cells.index("<h2>")) < cells.index(f"<td>{HOOKS[1]}")


def test_what_is_refused_or_interrupted_leaves_the_folder_as_it_was(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cfg = CircuitsConfig(**settings, out=str(out), controls=False)

    def interrupted(found: Any, path: Path) -> None:
        path.write_text("half a page")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(DRAWINGS, "circuits.html", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find_circuits(cfg)
    assert not out.exists()
    find_circuits(cfg)
    (out / "notes.txt").write_text("mine")
    before = files_of(out)
    monkeypatch.setitem(DRAWINGS, "circuits.html", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_circuits(cfg)
    arguments = ["circuits", "--sae", cfg.sae[0], "--model", str(cfg.model), "--out", str(out)]
    assert main([*arguments, "--task", cfg.task, "--pairs", str(PAIRS), "--budgets", "4,41"]) == 1
    assert files_of(out) == before
    # A page that cannot be drawn costs no table, and is said.

    def broken(found: Any, path: Path) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setitem(DRAWINGS, "circuits.html", broken)
    with pytest.raises(ValueError, match=r"tables are in .*circuits.html \(RuntimeError: no ink\)"):
        find_circuits(dataclasses.replace(cfg, budgets=[8]))
    assert set(pd.read_csv(out / "nodes.csv")["k"]) == {8}
    assert (out / "notes.txt").read_text() == "mine"


def test_circuits_of_one_size_are_refused_before_they_are_judged(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    cfg = CircuitsConfig(
        **{**settings, "sizes": [90000, 100000], "budgets": [4], "out": str(tmp_path / "out")}
    )
    with pytest.raises(ValueError, match="two sizes above 0.* nodes contribute"):
        find_circuits(dataclasses.replace(cfg, controls=False))
    assert not (tmp_path / "out").exists()
