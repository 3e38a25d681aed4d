"""`hsae circuits` and `hsae latents` on the real model, and the pages they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hsae_lens import load_pretrained
from hsae_lens.circuits import neuron_basis
from hsae_lens.circuits.plan import CircuitsConfig
from hsae_lens.circuits.plots import circuit_figure
from hsae_lens.circuits.run import find_circuits
from hsae_lens.cli import main
from hsae_lens.evaluation.dashboards import latent_dashboards
from hsae_lens.models import hook_activations, open_model
from hsae_lens.text import sample_tokens

SHIPPED = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("circuits")
    arguments = f"--task sva --budgets 8,64 --pairs 16 --steps 1 --sizes 1,16 --out {out}".split()
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
    model = open_model("smollm2-135m")
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


def test_pairs_from_a_file_and_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "mine.csv"
    pairs.write_text(
        "clean,corrupt,right,wrong\n" + "The keys on the table,The key on the table, are, is\n" * 3
    )

    def error_of(*arguments: str) -> str:
        assert main(["circuits", "--sae", SHIPPED, "--out", str(tmp_path), *arguments]) == 1
        return capsys.readouterr().err

    assert "guessing might do too" in error_of("--task", "greater-than", "--pairs", "8")
    assert "Did you mean" in error_of("--task", "agrement")
    assert "outside 1..k=128" in error_of("--budgets", "8,256")
    assert "Two sizes above 0" in error_of("--sizes", "1")
    assert "sizes are whole numbers" in error_of("--sizes", "few")
    assert "Did you mean 'resample'" in error_of("--replace", "resampl")
    assert "8 are needed" in error_of("--task", str(pairs))  # three pairs prove nothing
    pairs.write_text("clean,corrupt,right,wrong\nA b,A, are, antidisestablishmentarianism\n")
    assert "several tokens in this tokenizer" in error_of("--task", str(pairs))
    neurons = neuron_basis(
        load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post"), torch.zeros(576)
    )
    neurons.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    neurons.save_model(tmp_path / "neurons")
    assert "not of blocks.15" in error_of("--beside", str(tmp_path / "neurons"))
    assert not (tmp_path / "run.json").exists()


def test_two_sites_at_once(tmp_path: Path) -> None:
    """The shipped SAE, and the model's own neurons further up."""
    sae = load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
    upper = neuron_basis(sae, sae.b_dec.detach())
    upper.cfg.metadata.hook_name = "blocks.20.hook_resid_post"
    upper.save_model(tmp_path / "upper")
    found = find_circuits(
        CircuitsConfig(
            [SHIPPED, str(tmp_path / "upper")],
            [],
            budgets="16",
            pairs=16,
            sizes="1,4",
            steps=1,
            controls=False,
            out=str(tmp_path / "out"),
        )
    )
    assert found.edges is not None
    assert set(found.edges["to_site"]) == {"blocks.20.hook_resid_post"}
    assert (tmp_path / "out" / "edges.csv").exists()
    figure = circuit_figure(found.nodes, found.facts["tokens"], found.facts["answer"], found.edges)
    names = {text.get_text() for text in figure.axes[0].texts}
    assert {"3307", "blocks.15.hook_resid_post", "blocks.20.hook_resid_post"} <= names
