"""What is said and shown of single latents, and what `hsae latents` takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.cli import main
from hsae_lens.evaluation.latents.dashboards import latent_dashboards
from hsae_lens.evaluation.latents.describe import describe_latents, logit_effects
from hsae_lens.evaluation.latents.page import write_latents
from hsae_lens.models.hooks import hook_activations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SAE of more ranks than an interpretation looks at."""
    folder = tmp_path_factory.mktemp("latents") / "sae"
    training_sae(d_in=32, d_sae=256, k=200).save_inference_model(folder)
    sae = SAE.load_from_disk(folder)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.cfg.metadata.context_size = 32
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="module")
def sae(folder: Path) -> HierarchicalTopKSAE:
    return SAE.load_from_disk(folder)


def test_the_histogram_counts_every_rank(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor, tmp_path: Path
) -> None:
    dashboards = latent_dashboards(sae, tiny_gemma2, tiny_tokens[:8], [3, 4, 5])
    late = 0
    for shown in dashboards:
        assert shown.ranks == [(1, 8), (9, 32), (33, 128), (129, 200)]
        n = round(shown.density * tiny_tokens[:8].numel())
        assert n * 0.9 < sum(map(sum, shown.histogram)) <= tiny_tokens[:8].numel()
        late += sum(shown.histogram[-1])
    assert late > 0
    page = write_latents(dashboards, tmp_path / "page.html", "mine", "a text").read_text()
    assert "rank 129–200" in page
    with sae.using_budget(sae.cfg.k):
        few = SAE.from_dict(sae.cfg.to_dict() | {"k": 20})
    (one,) = latent_dashboards(few, tiny_gemma2, tiny_tokens[:2], [3])
    assert one.ranks == [(1, 8), (9, 20)]


def test_a_latent_named_twice_is_shown_once(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    dashboards = latent_dashboards(sae, tiny_gemma2, tiny_tokens[:8], [5, 3, 5])
    assert [shown.latent for shown in dashboards] == [5, 3]
    assert all(shown.contexts for shown in dashboards)


@pytest.mark.parametrize("latent", [-1, 256])
def test_a_latent_that_is_not_there_is_no_other_one(
    latent: int, sae: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    for ask in (
        lambda: latent_dashboards(sae, tiny_gemma2, tiny_tokens[:2], [3, latent]),
        lambda: describe_latents(sae, tiny_gemma2, tiny_tokens[:2], [3, latent]),
        lambda: logit_effects(sae, tiny_gemma2, [3, latent]),
    ):
        with pytest.raises(ValueError, match=rf"numbers in 0..255, got {latent}\b"):
            ask()


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ("3,256", "Latents are numbers in 0..255, got 256."),
        ("-1", "Latents are numbers with commas, or a CSV of nodes; got '-1'."),
        ("1,,2", "Latents are numbers with commas, or a CSV of nodes; got '1,,2'."),
        ("²", "Latents are numbers with commas, or a CSV of nodes; got '²'."),
        ("", "Latents are numbers with commas, or a CSV of nodes; got ''."),
        ("no.csv", "No such file or directory: {}/no.csv"),
        ("empty.csv", "{}/empty.csv is no table (No columns to parse from file)."),
        ("other.csv", "{}/other.csv has no columns site and latent"),
        ("words.csv", "{}/words.csv has latents that are no whole numbers"),
        ("far.csv", "Latents are numbers in 0..255, got 300."),
        ("none.csv", "{}/none.csv has no latent of blocks.1.hook_resid_post."),
    ],
)
def test_what_are_no_latents_is_said_before_a_model_is_opened(
    latents: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.csv").write_text("a\n1\n")
    (tmp_path / "words.csv").write_text("site,latent\nblocks.1.hook_resid_post,three\n")
    (tmp_path / "far.csv").write_text("site,latent\nblocks.1.hook_resid_post,300\n")
    (tmp_path / "none.csv").write_text("site,latent\nblocks.0.hook_resid_post,3\n")
    if latents.endswith(".csv"):
        latents = str(tmp_path / latents)
    assert main(["latents", str(folder), latents, "--model", "/no/such"]) == 1
    error = capsys.readouterr().err
    assert message.format(tmp_path) in error
    assert error.count("\n") == 1


def test_the_command_writes_a_page_of_each_latent_once(
    folder: Path, gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    command = ["latents", str(folder), "5, 3,5", "--model", str(gemma2_folder)]
    command += ["--text", str(text_file), "--tokens", "256", "--out", str(tmp_path / "page.html")]
    assert main(command) == 0
    page = (tmp_path / "page.html").read_text()
    assert re.findall("<h2.*?>(.*?)</h2>", page) == ["Latent 5", "Latent 3"]


def test_latents_described_without_a_judge(
    shipped_sae: Any, smollm: Any, smollm_tokens: torch.Tensor
) -> None:
    sae, few = shipped_sae, smollm_tokens[:6]
    table = describe_latents(sae, smollm, few, n_words=3).set_index("latent")
    acts = hook_activations(smollm, few, sae.cfg.metadata.hook_name)
    special = torch.isin(few, torch.tensor(smollm.tokenizer.all_special_ids))
    keep = (acts.norm(dim=-1) <= sae.cfg.metadata.max_norm) & ~special
    keep[:, :4] = False
    code, words = sae.encode(acts)[keep], few[keep]
    assert set(table.index) == set((code > 0).any(0).nonzero().flatten().tolist())
    for latent in table.index[::500]:
        fires = code[:, latent] > 0
        row = table.loc[latent]
        assert row["density"] == pytest.approx(fires.double().mean().item())
        assert row["activation"] == pytest.approx(code[fires, latent].mean().item(), rel=1e-4)
        times = words[fires].unique(return_counts=True)[1]
        assert row["token_share"] == pytest.approx((times.max() / fires.sum()).item())
        assert len(row["promotes"]) == 3
    nobody = next(i for i in range(sae.cfg.d_sae) if i not in table.index)
    assert describe_latents(sae, smollm, few, [nobody])["density"][0] == 0


@torch.no_grad()
def test_latents_of_every_kind_of_sae_are_what_it_encodes(
    any_sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    tokens = tiny_tokens[:8]
    acts = hook_activations(tiny_gemma2, tokens, any_sae.cfg.metadata.hook_name)
    special = torch.isin(tokens, torch.tensor(tiny_gemma2.tokenizer.all_special_ids))
    code = any_sae.encode(acts)[~special].double()
    fires = code > 0
    table = describe_latents(any_sae, tiny_gemma2, tokens).set_index("latent")
    assert set(table.index) == set(fires.any(0).nonzero().flatten().tolist())
    for latent in table.index[::20]:
        mine, row = fires[:, latent], table.loc[latent]
        assert row["density"] == pytest.approx(mine.double().mean().item())
        assert row["activation"] == pytest.approx(code[mine, latent].mean().item(), rel=1e-4)
        (shown,) = latent_dashboards(any_sae, tiny_gemma2, tokens, [latent])
        assert shown.density == pytest.approx(row["density"])
        assert max(shown.contexts[0].values) == pytest.approx(
            code[:, latent].max().item(), rel=1e-4
        )
