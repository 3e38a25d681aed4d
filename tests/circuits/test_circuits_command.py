"""`hsae circuits` and `hsae latents` on the real model, and the pages they leave."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig, load_pretrained
from hsae_lens.circuits import attribute_budgets
from hsae_lens.circuits.page import write_circuits
from hsae_lens.circuits.plan import CircuitsConfig, open_task
from hsae_lens.circuits.plots import circuit_figure
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.circuits.run import CIRCUIT_FILES, find_circuits
from hsae_lens.cli import main
from hsae_lens.evaluation.latents.dashboards import latent_dashboards
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.opening import open_model
from hsae_lens.models.tokens import sample_tokens
from hsae_lens.releases.opening import open_sae

SHIPPED = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"
HOOK = "blocks.1.hook_resid_post"
N = 12  # pairs


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


def test_a_dashboard_counts_what_the_sae_encodes() -> None:
    model = open_model("smollm2-135m", dtype="float32")
    sae = load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
    tokens, _ = sample_tokens(None, model.tokenizer, 64, 256)
    one, silent = latent_dashboards(sae, model, tokens, [3307, _silent(sae, model, tokens)])
    acts = hook_activations(model, tokens, "blocks.15.hook_resid_post")
    with torch.no_grad():
        values = sae.encode(acts)[..., 3307]
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, :4] = False
    keep &= tokens != model.tokenizer.bos_token_id
    keep &= acts.norm(dim=-1) <= 870
    values = values * keep
    assert one.density == pytest.approx(((values > 0).sum() / keep.sum()).item())
    assert sum(map(sum, one.histogram)) == int((values > 0).sum())
    strongest = one.contexts[0]
    assert max(strongest.values) == pytest.approx(values.max().item(), rel=1e-4)
    assert one.promoted[0][0] == " are"
    assert one.suppressed[0][1] < 0 < one.promoted[-1][1]
    assert silent.contexts == []
    assert silent.density == 0
    with pytest.raises(ValueError, match=r"numbers in 0..4607"):
        latent_dashboards(sae, model, tokens, [4608])


@torch.no_grad()
def _silent(sae: Any, model: Any, tokens: torch.Tensor) -> int:
    acts = sae.encode(hook_activations(model, tokens, "blocks.15.hook_resid_post"))
    return int((acts == 0).flatten(0, 1).all(0).nonzero()[0])


# --- the command on a small model ---


@pytest.fixture(scope="module")
def pairs_file(tiny_gemma2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that a model of random weights is right about, because it was asked first."""
    tokenizer = tiny_gemma2.tokenizer
    words = [" " + letter for letter in "abcdefghijklmnopqrstuvwxyz$"]
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
    single = {word: id[0] for word, id in ids.items() if len(id) == 1}
    letters = random.Random(0).choices([w.strip() for w in single if w != " $"], k=4 * N)
    clean = [f"{'$'.join(letters[4 * n : 4 * n + 3])} {letters[n]}" for n in range(N)]
    corrupt = [f"{'$'.join(letters[4 * n + 1 : 4 * n + 4])} {letters[-n]}" for n in range(N)]
    rows = []
    for one, other in zip(clean, corrupt, strict=True):
        tokens = [tokenizer.bos_token_id, *tokenizer(one, add_special_tokens=False)["input_ids"]]
        logits = tiny_gemma2(torch.tensor([tokens]), prepend_bos=False)[0, -1]
        liked = sorted(single, key=lambda word: float(logits[single[word]]))
        rows.append([one, other, liked[-1], liked[0]])
    path = tmp_path_factory.mktemp("pairs") / "made.csv"
    pd.DataFrame(rows, columns=["clean", "corrupt", "right", "wrong"]).to_csv(path, index=False)
    return path


def save_small(folder: Path, hook: str = HOOK, stock: bool = False) -> str:
    """A dictionary with budgets above its width, of an activation around zero.

    A stock one's latents are not looked up in CPython's reference, which takes seconds.
    """
    cfg = HierarchicalTopKSAEConfig(
        d_in=32, d_sae=96, k=40, rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=False
    )
    cfg.metadata.hook_name, cfg.metadata.context_size = hook, 32
    sae = HierarchicalTopKSAE(cfg)
    with torch.no_grad():
        rows = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
        sae.W_dec.copy_(rows / rows.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(0.3 * sae.W_dec.T)
    (sae.at_k(40) if stock else sae).save_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small_sae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small(tmp_path_factory.mktemp("saes") / "$small_$")


@pytest.fixture(scope="module")
def settings(
    gemma2_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return {
        "sae": [save_small(tmp_path_factory.mktemp("saes") / "$stock_$", stock=True)],
        "beside": [],
        "task": str(pairs_file),
        "model": str(gemma2_folder),
        "pairs": N,
        "steps": 1,
        "budgets": [4, 40],
        "sizes": [1, 4, 100000],
        "dtype": "float32",
    }


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
    found = find_circuits(cfg, write_circuits)
    assert {file.name for file in tmp_path.iterdir()} == set(CIRCUIT_FILES) - {"edges.csv"}
    assert "$" in "".join(found.facts["tokens"])
    assert found.facts["dtype"] == "float32"
    assert "larger circuits are cut" in caplog.text
    # The first half's own attribution, by hand.
    task = open_task(settings["task"], tiny_gemma2.tokenizer, N).halves()[0]
    sae = open_sae(cfg.sae[0])
    by_hand = attribute_budgets(
        tiny_gemma2, sae, task.clean, task.metric, [4], task.corrupt, replace=replace
    ).nodes(4)
    shown = found.nodes[found.nodes["k"] == 4].head(5)
    assert list(shown["latent"]) == list(by_hand["latent"].head(5))
    assert list(shown["effect"]) == pytest.approx(list(by_hand["effect"].head(5)), rel=1e-4)
    if replace == "zero":
        assert "Left out: neurons at the budgets [40], above its 32" in caplog.text
        assert set(found.curve[found.curve["sae"] == "neurons"]["k"]) == {4}
        assert set(found.curve[found.curve["sae"] == "random decoder"]["k"]) == {4, 40}
    else:
        assert "No controls: they are made from hierarchical SAEs" in caplog.text


def test_two_sites_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    """Tables, picture and page have them in the model's order, though given upside down."""
    lower = "blocks.0.hook_resid_post"
    other = save_small(tmp_path / "lower", lower, stock=True)
    cfg = CircuitsConfig(**settings, out=str(tmp_path / "out"), controls=False)
    found = find_circuits(dataclasses.replace(cfg, sae=[*cfg.sae, other]), write_circuits)
    assert found.edges is not None
    assert set(found.edges["to_site"]) == {HOOK}
    assert (tmp_path / "out" / "edges.csv").exists()
    for _, nodes in pd.read_csv(tmp_path / "out" / "nodes.csv").groupby("k"):
        assert list(nodes["site"].unique()) == [lower, HOOK]
    figure = circuit_figure(found.nodes, found.facts["tokens"], found.facts["answer"], found.edges)
    heights = {text.get_text(): text.xy[1] for text in figure.axes[0].texts}
    assert heights[lower] < heights[HOOK]
    page = (tmp_path / "out" / "circuits.html").read_text()
    cells = page[page.index("Its nodes") :]
    assert cells.index(f"<td>{lower}") < cells.index(f"<td>{HOOK}")
    assert cells.rindex(f"<td>{lower}", 0, cells.index("<h2>")) < cells.index(f"<td>{HOOK}")


def test_what_is_refused_or_interrupted_leaves_the_folder_as_it_was(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cfg = CircuitsConfig(**settings, out=str(out), controls=False)

    def interrupted(found: Any, path: Path) -> None:
        path.write_text("half a page")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_circuits(cfg, interrupted)
    assert not out.exists()
    find_circuits(cfg)
    (out / "notes.txt").write_text("mine")
    before = files_of(out)
    with pytest.raises(KeyboardInterrupt):
        find_circuits(cfg, interrupted)
    arguments = ["circuits", "--sae", cfg.sae[0], "--model", str(cfg.model), "--out", str(out)]
    assert main([*arguments, "--task", cfg.task, "--pairs", str(N), "--budgets", "4,41"]) == 1
    assert files_of(out) == before
    # A page that cannot be drawn costs no table, and is said.

    def broken(found: Any, path: Path) -> None:
        raise RuntimeError("no ink")

    with pytest.raises(ValueError, match=r"tables are in .*circuits.html \(RuntimeError: no ink\)"):
        find_circuits(dataclasses.replace(cfg, budgets=[8]), broken)
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


WRONG = {
    "--task agrement": "Did you mean 'agreement'",
    "--task none.csv": "No pairs at none.csv",
    "--pairs -1": "-1 pairs show nothing",
    "--budgets 1,x": "--budgets: whole numbers with commas, as in 1,8,32; got 'x' in '1,x'",
    "--budgets 0,4": "Budgets are whole numbers of at least 1, got [0, 4]",
    "--budgets 8,41": "The budgets [41] are outside 1..k=40 of {sae}",
    "--sizes 1": "two sizes above 0, got [1]",
    "--sizes few": "--sizes: whole numbers with commas",
    "--sizes 1,-4": "--sizes: whole numbers with commas",
    "--steps 0": "1 step at least, got 0",
    "--replace resampl": "Did you mean 'resample'",
    "--errors all": "Known: default, keep, remove",
    "--dtype float99": "Unknown dtype 'float99'",
    "--device banana": "Unknown device 'banana'",
    "--dtype float32 --device cuda:99": "The device 'cuda:99' was asked for",
    "--beside {sae} --beside {sae}": "Two SAEs here would be called",
    "--beside {other}": "is of blocks.0.hook_resid_post, not of blocks.1",
}


def test_a_mistake_is_one_line_before_any_work(
    small_sae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no model at all: who gets as far as opening it has not looked at the flags."""
    sae = open_sae(small_sae)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.save_model(tmp_path / "other")
    names = {"sae": small_sae, "other": tmp_path / "other"}
    out = tmp_path / "out"
    for flags, message in WRONG.items():
        arguments = ["circuits", "--sae", small_sae, "--model", str(tmp_path), "--budgets", "8"]
        arguments += ["--out", str(out), *flags.format(**names).split(" ")]
        assert main(arguments) == 1, flags
        error = capsys.readouterr().err.strip().split("\n")
        assert message.format(**names) in error[-1], flags
        assert len([line for line in error if line.startswith("hsae:")]) == 1
    assert not out.exists()
    out.write_text("a file")
    assert main(["circuits", "--sae", small_sae, "--out", str(out)]) == 1
    assert f"Cannot write to {out}: Not a directory" in capsys.readouterr().err
    assert out.read_text() == "a file"
    if Path("/proc").is_dir():  # where nobody makes a folder
        assert main(["circuits", "--sae", small_sae, "--out", "/proc/none/out"]) == 1
        assert "Cannot write to /proc/none/out" in capsys.readouterr().err


def test_a_pair_too_few_is_said_with_the_reason(
    tiny_gemma2: Any, tmp_path: Path, pairs_file: Path
) -> None:
    pairs = pd.read_csv(pairs_file)
    few = tmp_path / "few.csv"
    pairs.head(1).to_csv(few, index=False)
    with pytest.raises(ValueError, match=r"few.csv has 1 pair, 8 are needed: half of them"):
        open_task(str(few), tiny_gemma2.tokenizer, 64)
    pairs.assign(wrong=" antidisestablishmentarianism").to_csv(few, index=False)
    with pytest.raises(ValueError, match="several tokens in this tokenizer"):
        open_task(str(few), tiny_gemma2.tokenizer, 64)


def test_a_task_that_the_model_guesses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "greater-than", "--pairs", "8", "--dtype", "float32"]
    assert main(["circuits", "--sae", SHIPPED, *arguments]) == 1
    assert "guessing might do too" in capsys.readouterr().err
