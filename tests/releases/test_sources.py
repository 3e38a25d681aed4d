"""SAEs of other libraries, opened as stock ones: they compute what the library's own class does."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_learning.dictionary import AutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from helpers import training_sae
from helpers.converted import converted_at_its_own
from helpers.hub import hub
from helpers.processes import OFFLINE, python
from helpers.releases import SHIPPED
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE, AbsTopKSAE, AbsTopKSAEConfig, StandardSAE, StandardSAEConfig
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAE, register_release
from hsae_lens.releases import sources
from hsae_lens.releases.sources import open_source

D_IN, D_SAE, K = 12, 40, 5

THRESHOLD = 0.7

DICTIONARIES: dict[str, Callable[[], torch.nn.Module]] = {
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D_IN, D_SAE, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D_IN, D_SAE, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [10, 30]),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D_IN, D_SAE),
}


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """With weights that nothing ties together, biases and decoder norms among them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        if isinstance(module, JumpReluAutoEncoder):
            module.threshold.uniform_(-0.1, 1)
        elif not isinstance(module, AutoEncoder | SparseCoder):
            module.threshold.fill_(THRESHOLD)
    return module


def save_sparsify(folder: Path, **settings: Any) -> SparseCoder:
    cfg = SparseCoderConfig(k=K, num_latents=D_SAE, **settings)
    coder = scrambled(SparseCoder(D_IN, cfg))
    coder.save_to_disk(folder)
    run = {"model": "EleutherAI/pythia-14m", "dataset": "some/text", "ctx_len": 64}
    (folder.parent / "config.json").write_text(json.dumps(run))
    return coder


def save_dictionary(folder: Path, kind: str, **trainer: Any) -> torch.nn.Module:
    folder.mkdir(parents=True, exist_ok=True)
    module = scrambled(DICTIONARIES.get(kind, lambda: AutoEncoder(D_IN, D_SAE))())
    torch.save(module.state_dict(), folder / "ae.pt")
    facts = {
        "dict_class": kind,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "k": K,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-14m",
        "submodule_name": "resid_post_layer_3",
    }
    config = {"trainer": facts | trainer, "buffer": {"io": "out", "ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return module


def save_as_safetensors(folder: Path) -> None:
    """The weights of ``ae.pt``, which stays."""
    state = torch.load(folder / "ae.pt")
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "ae.safetensors")


def change(file: Path, **facts: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.fixture
def hookpoint(tmp_path: Path) -> Path:
    """One sparsify SAE in a run's folder."""
    save_sparsify(tmp_path / "run" / "layers.3")
    return tmp_path / "run" / "layers.3"


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """One of dictionary_learning's."""
    save_dictionary(tmp_path / "trainer_0", "BatchTopKSAE")
    return tmp_path / "trainer_0"


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3)])
@pytest.mark.parametrize("normalize", [True, False])
def test_sparsify_reconstructs_as_its_own_class(
    tmp_path: Path, shape: tuple[int, ...], normalize: bool
) -> None:
    theirs = save_sparsify(tmp_path / "layers.3", normalize_decoder=normalize)
    sae = open_source(tmp_path / "layers.3")
    x = torch.randn(*shape, D_IN)
    expected = theirs(x.reshape(-1, D_IN)).sae_out.reshape(x.shape)
    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(converted_at_its_own(sae, x, tmp_path / "ours"), expected)
    assert (sae.cfg.architecture(), sae.cfg.k, sae.dtype) == ("topk", K, torch.float32)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3)])
@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionaries_reconstruct_as_their_own_class(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    theirs = save_dictionary(tmp_path, kind)
    x = torch.randn(*shape, D_IN)
    expected = theirs(x.reshape(-1, D_IN)).reshape(x.shape)
    sae = open_source(tmp_path)
    torch.testing.assert_close(sae(x), expected)
    if kind != "JumpReluAutoEncoder":  # some of its thresholds here are not positive
        torch.testing.assert_close(converted_at_its_own(sae, x, tmp_path / "ours"), expected)
    assert HierarchicalTopKTrainingSAE.from_sae(sae).cfg.k == K
    assert 0 < (sae.encode(x) != 0).float().mean() < 0.7
    save_as_safetensors(tmp_path)
    (tmp_path / "ae.pt").unlink()
    torch.testing.assert_close(open_source(tmp_path)(x), expected)


def test_what_is_opened_saves_and_opens_again(hookpoint: Path, tmp_path: Path) -> None:
    sae = open_source(hookpoint)
    sae.save_model(tmp_path / "stock")
    again = open_source(tmp_path / "stock")
    x = torch.randn(4, D_IN)
    torch.testing.assert_close(again(x), sae(x))
    assert again.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


def test_metadata_say_what_the_source_says(hookpoint: Path, dictionary: Path) -> None:
    (hookpoint.parent / "README.md").write_text("---\nlicense: mit\ntags: [sae]\n---\n# Mine\n")
    found = open_source(hookpoint).cfg.metadata
    assert found.converted_from == f"EleutherAI sparsify: {hookpoint}"
    assert (found.model_name, found.dataset_path) == ("EleutherAI/pythia-14m", "some/text")
    assert (found.context_size, found.source_licence) == (64, "mit")
    assert found.prepend_bos is None
    found = open_source(dictionary).cfg.metadata
    assert found.converted_from == f"dictionary_learning: {dictionary}"
    assert (found.model_name, found.context_size) == ("EleutherAI/pythia-14m", 128)
    assert (found.hook_name, found.source_licence) == ("blocks.3.hook_resid_post", None)
    (hookpoint.parent / "README.md").write_text("---\nlicense: [\n---\n")
    assert open_source(hookpoint).cfg.metadata.source_licence is None


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.11", "blocks.11.hook_resid_post"),
        ("h.0", "blocks.0.hook_resid_post"),
        ("transformer.h.2.attn", "blocks.2.hook_attn_out"),
        ("gpt_neox.layers.1.attention", "blocks.1.hook_attn_out"),
        ("model.layers.3.self_attn", "blocks.3.hook_attn_out"),
        ("layers.3.mlp", "blocks.3.hook_mlp_out"),
        ("layers.3/seed1", "blocks.3.hook_resid_post"),
        ("embed_tokens", "hook_embed"),
        ("layers.3.mlp.act", None),
        ("encoder", None),
    ],
)
def test_hookpoints_by_transformer_lens_names(tmp_path: Path, name: str, hook: str | None) -> None:
    save_sparsify(tmp_path / name)
    assert open_source(tmp_path / name).cfg.metadata.hook_name == hook


def test_a_hook_that_means_something_else_is_left_open(tmp_path: Path) -> None:
    save_sparsify(tmp_path / "layers.3.mlp")
    change(tmp_path / "config.json", model="google/gemma-2-2b")
    assert open_source(tmp_path / "layers.3.mlp").cfg.metadata.hook_name is None
    for facts in ({"submodule_name": "resid"}, {"submodule_name": None}, {"layer": None}):
        save_dictionary(tmp_path / "a", "AutoEncoderTopK", **facts)
        assert open_source(tmp_path / "a").cfg.metadata.hook_name is None
    save_dictionary(tmp_path / "a", "AutoEncoderTopK")
    change(tmp_path / "a" / "config.json", buffer={"io": "in"})
    assert open_source(tmp_path / "a").cfg.metadata.hook_name is None


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"transcode": True}, "a transcoder"),
        ({"skip_connection": True}, "skip connection"),
        ({"signed": True}, "keeps negative latents"),
        ({"activation": "abs_topk"}, "keeps negative latents"),
        ({"activation": "groupmax"}, "groupmax keeps the largest latent of each group"),
        ({"activation": "relu"}, "'relu' is unknown"),
        ({"k": D_SAE + 1}, "k=41 exceeds the number of latents, 40"),
        ({"k": True}, "k must be a whole number"),
        ({"d_in": None}, "d_in must be a whole number"),
        ({"num_latents": 0}, "shape (40, 12) where the config says (384, 12)"),
    ],
)
def test_sparsify_saes_without_a_place_are_refused(
    hookpoint: Path, facts: dict[str, Any], why: str
) -> None:
    change(hookpoint / "cfg.json", **facts)
    with pytest.raises(ValueError) as refused:
        open_source(hookpoint)
    assert why in str(refused.value)
    assert str(hookpoint) in str(refused.value)


def test_num_latents_may_be_given_by_the_expansion_factor(hookpoint: Path) -> None:
    expected = open_source(hookpoint)
    coder = SparseCoder(D_IN, SparseCoderConfig(k=K, expansion_factor=2))
    coder.save_to_disk(hookpoint)
    assert open_source(hookpoint).cfg.d_sae == 2 * D_IN != expected.cfg.d_sae


def test_tensors_that_do_not_fit_are_refused(hookpoint: Path) -> None:
    file = hookpoint / "sae.safetensors"
    good = load_file(file)
    for tensors, why in (
        ({n: t for n, t in good.items() if n != "W_dec"}, "holds an encoder only"),
        ({n: t for n, t in good.items() if n != "b_dec"}, "b_dec is missing"),
        (good | {"W_skip": torch.ones(2)}, "W_skip does not belong there"),
        (good | {"W_dec": good["W_dec"].T.contiguous()}, "W_dec has the shape"),
        (good | {"b_dec": good["b_dec"].to(torch.int8)}, "b_dec is stored as torch.int8"),
        (good | {"b_dec": torch.full((D_IN,), torch.nan)}, "b_dec holds NaN or infinite numbers"),
        (good | {"W_dec": good["W_dec"] * (torch.arange(D_SAE) > 2)[:, None]},
         "3 of 40 decoder rows are zero: a latent without a direction"),
    ):  # fmt: skip
        save_file(tensors, file)
        with pytest.raises(ValueError, match=why):
            open_source(hookpoint)


def refuse_damage(file: Path, folder: Path, why: str) -> None:
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[9:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file} is damaged{why}"):
            open_source(folder)
    file.write_bytes(whole)


def test_damaged_files_are_named(hookpoint: Path, dictionary: Path) -> None:
    refuse_damage(hookpoint / "cfg.json", hookpoint, ": it is no JSON")
    refuse_damage(hookpoint.parent / "config.json", hookpoint, ": it is no JSON")
    refuse_damage(hookpoint / "sae.safetensors", hookpoint, " or cut short")
    refuse_damage(dictionary / "config.json", dictionary, ": it is no JSON")
    refuse_damage(dictionary / "ae.pt", dictionary, ", cut short, or holds more than plain tensors")
    save_as_safetensors(dictionary)
    refuse_damage(dictionary / "ae.safetensors", dictionary, " or cut short")
    for folder, file in ((hookpoint, "cfg.json"), (dictionary, "config.json")):
        (folder / file).write_text("[1]")
        with pytest.raises(ValueError, match=f"{file} holds list where names and values belong"):
            open_source(folder)


def test_a_pickle_gives_tensors_and_nothing_else(
    dictionary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_source(dictionary)
    assert f"{dictionary / 'ae.pt'} is a pickle: only plain tensors are taken" in caplog.text
    for content in (BatchTopKSAE(D_IN, D_SAE, K), [torch.ones(2)], {"W_enc": 3}, torch.ones(2)):
        torch.save(content, dictionary / "ae.pt")
        with pytest.raises(ValueError, match=r"more than plain tensors.* as ae.safetensors"):
            open_source(dictionary)


def test_dictionaries_without_a_place_are_refused(tmp_path: Path) -> None:
    for kind in ("AutoEncoder", "GatedAutoEncoder", "CrossCoder"):
        save_dictionary(tmp_path, kind)
        with pytest.raises(ValueError, match=f"the class '{kind}' has neither a number of latents"):
            open_source(tmp_path)
    change(tmp_path / "config.json", trainer=None)
    with pytest.raises(ValueError, match="the class None has neither"):
        open_source(tmp_path)
    save_dictionary(tmp_path, "AutoEncoderTopK", k=K + 1)
    with pytest.raises(ValueError, match="says k=6, and .* 5"):
        open_source(tmp_path)
    save_dictionary(tmp_path, "JumpReluAutoEncoder", dict_size=D_SAE + 1)
    with pytest.raises(ValueError, match="W_enc has the shape .* where the config says"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_set_is_refused(tmp_path: Path, kind: str) -> None:
    state = save_dictionary(tmp_path, kind).state_dict()
    for value in (-1.0, 0.0):
        torch.save(state | {"threshold": torch.tensor(value)}, tmp_path / "ae.pt")
        with pytest.raises(ValueError, match=f"the threshold is {value:g}, as before training"):
            open_source(tmp_path)
    torch.save(state | {"threshold": torch.tensor(torch.nan)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="threshold holds NaN"):
        open_source(tmp_path)
    torch.save({n: t for n, t in state.items() if n != "threshold"}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="threshold is missing"):
        open_source(tmp_path)


def test_saelens_own_and_ours_by_folder_and_name(tmp_path: Path) -> None:
    training_sae(dtype="float64").save_inference_model(tmp_path / "ours")
    ours = open_source(tmp_path / "ours")
    assert isinstance(ours, HierarchicalTopKSAE)
    assert ours.dtype == torch.float32
    assert ours.cfg.metadata.converted_from == f"SAELens: {tmp_path / 'ours'}"
    shipped = open_source("/".join(SHIPPED))
    assert isinstance(shipped, HierarchicalTopKSAE)
    assert shipped.cfg.metadata.hook_name == SHIPPED[1]
    SAE.load_from_disk(tmp_path / "ours").at_k(2).save_model(tmp_path / "stock")
    assert open_source(tmp_path / "stock").cfg.architecture() == "topk"


@pytest.mark.parametrize(
    ("sae", "why"),
    [
        (AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)), "latents are signed"),
        (StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)), "neither a number of latents"),
    ],
)
def test_other_architectures_of_saelens_are_refused(
    tmp_path: Path, sae: SAE[Any], why: str
) -> None:
    sae.save_model(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: .* cannot be converted: .*{why}"):
        open_source(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for where in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError) as missing:
            open_source(where)
        for kind in ("cfg.json and sae_weights.safetensors (SAELens)", "sae.safetensors (Eleuther",
                     "config.json and ae.safetensors or ae.pt"):  # fmt: skip
            assert kind in str(missing.value)
    with pytest.raises(FileNotFoundError, match=f"Did you mean '{SHIPPED[0]}/{SHIPPED[1]}'"):
        open_source(f"{SHIPPED[0]}/blocks.16")


def test_releases_that_saelens_reads_wrongly_are_read_here(
    hookpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, path: str) -> str:
        assert repo_id == "me/saes"
        if not (file := hookpoint.parent / path).exists():
            raise EntryNotFoundError(path)
        return str(file)

    register_release("mine", model="m", repo_id="me/saes", saes=[{"id": "a", "path": "layers.3"}])
    directory = get_pretrained_saes_directory()
    directory["mine"] = dataclasses.replace(directory["mine"], conversion_func="sparsify")
    monkeypatch.setattr(sources, "hf_hub_download", download)
    sae, x = open_source("mine/a"), torch.randn(3, D_IN)
    torch.testing.assert_close(sae(x), open_source(hookpoint)(x))
    assert sae.cfg.metadata.converted_from == "EleutherAI sparsify: mine/a"


OPEN = """
import torch
from hsae_lens.releases.sources import open_source
for where in {where}:
    try:
        sae = open_source(where)
        facts = sae.cfg.metadata
        x_hat = sae(torch.ones(1, sae.cfg.d_in)).sum().item()
        print(x_hat, facts.model_name, facts.source_licence, facts.converted_from, sep="|")
    except Exception as error:
        print(repr(error))
"""


def test_from_a_hub_and_its_cache(hookpoint: Path, dictionary: Path, tmp_path: Path) -> None:
    def opened(*where: str, **environment: str) -> list[str]:
        done = python(OPEN.format(where=where), **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def expected(folder: Path, converted_from: str) -> str:
        x_hat = open_source(folder)(torch.ones(1, D_IN)).sum().item()
        return f"{x_hat}|EleutherAI/pythia-14m|mit|{converted_from}"

    run = hookpoint.parent
    files = {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*") if f.is_file()}
    files |= {f"a/b/{f.name}": f.read_bytes() for f in dictionary.iterdir()}
    there, absent = ("me/saes/layers.3", "me/saes/a/b"), ("me/saes/x", "me/no/x", "me--x/y/z")
    right = [
        expected(hookpoint, "EleutherAI sparsify: me/saes/layers.3"),
        expected(dictionary, "dictionary_learning: me/saes/a/b"),
    ]
    with hub() as server:
        environment = server.environment | {"HF_HOME": str(tmp_path / "hf")}
        server.repositories["me/saes"] = files | {"README.md": b"---\nlicense: mit\n---\n"}
        shown = opened(*there, *absent, **environment)
        assert shown[:2] == right
        for where, error in zip(absent, shown[2:], strict=True):
            assert error.startswith(f"FileNotFoundError('No saved SAE at {where}: neither RELEASE/")
        *shown, error = opened(*there, "me/saes/other", **environment, **OFFLINE)
        assert shown == right
        assert error.startswith("SAEUnavailableError('me/saes/other (no folder here, so OWNER/")
        assert "is not in the local cache" in error
