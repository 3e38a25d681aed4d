"""The inference SAE: SAELens' TopK plus an order and a budget."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import training_sae
from sae_lens import SAE, TopKSAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainStepInput

import hsae_lens
from hsae_lens import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)


def inference_sae(tmp_path: Path, **overrides: Any) -> HierarchicalTopKSAE:
    training_sae(**overrides).save_inference_model(tmp_path / "sae")
    return SAE.load_from_disk(tmp_path / "sae")


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    return inference_sae(tmp_path)


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 5, 24)


def test_encode_keeps_the_budget(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    assert sae.budget == 8
    whole = sae.encode_ordered(x)
    assert (whole.values.diff(dim=-1) <= 0).all()
    for k in (1, 3, 8):
        with sae.using_budget(k) as same:
            acts = same.encode(x)
        assert ((acts != 0).sum(-1) <= k).all()
        assert torch.equal(acts, whole.prefix(k).to_dense(96))
    assert sae.budget == 8
    with pytest.raises(AttributeError, match=r"Set sae.budget; sae.cfg.k is the largest"):
        sae.k = 2
    assert not hasattr(sae, "k")
    sae.budget = 2
    assert sae.encode_ordered(x).k == 8, "an ordered code always holds every latent"
    with pytest.raises(RuntimeError), sae.using_budget(5):
        raise RuntimeError
    assert sae.budget == 2


def test_decode_budgets_equals_decode(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    budgets = [1, 2, 5, 8]
    stack = sae.decode_budgets(sae.encode_ordered(x), budgets)
    assert stack.shape == (4, 3, 5, 24)
    for k, reconstruction in zip(budgets, stack, strict=True):
        with sae.using_budget(k):
            torch.testing.assert_close(reconstruction, sae(x))


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_decode_budgets_undoes_normalisation_once(mode: str, tmp_path: Path, x: Any) -> None:
    sae = inference_sae(tmp_path, normalize_activations=mode)
    code = sae.encode_ordered(x)
    first = sae.decode_budgets(code, [2, 8])
    assert torch.equal(first, sae.decode_budgets(code, [2, 8])), "it can be called again"
    torch.testing.assert_close(first[1], sae(x))
    with pytest.raises(RuntimeError, match="Call encode_ordered again"):
        sae.decode_budgets(code, [2])


def test_a_later_encode_does_not_change_reconstructions_asked_for_before(
    tmp_path: Path, x: torch.Tensor
) -> None:
    sae = inference_sae(tmp_path, normalize_activations="layer_norm")
    code = sae.encode_ordered(x)
    want = sae.decode_budgets(code, [2, 8])
    each = sae.each_budget(code, [2, 8])
    sae.encode(10 * x + 3)
    assert torch.equal(torch.stack(list(each)), want)


@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
def test_tokens_without_norm_or_spread_are_reconstructed_like_any(
    mode: str, tmp_path: Path
) -> None:
    sae = inference_sae(tmp_path, normalize_activations=mode)
    sae.b_dec.data.zero_()
    torch.manual_seed(1)
    x = torch.randn(4, 24)
    want = sae(x)
    x[1], x[2] = 0, 3.7
    x.requires_grad_()
    got = sae(x)
    torch.testing.assert_close(got[[0, 3]], want[[0, 3]])
    assert torch.isfinite(got).all()
    if mode != "none":
        torch.testing.assert_close(got[1], x[1])
    got.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    for p in sae.parameters():
        assert torch.isfinite(p.grad).all()


def deep_copy(sae: Any) -> Any:
    return copy.deepcopy(sae)


def pickled(sae: Any) -> Any:
    return pickle.loads(pickle.dumps(sae))


@pytest.mark.parametrize("kind", ["inference", "training"])
@pytest.mark.parametrize("copied", [deep_copy, pickled])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
        {"reshape_activations": "hook_z"},
    ],
    ids=str,
)
def test_a_copy_works_alone(settings: Any, copied: Any, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    x, other = torch.randn(3, 24, requires_grad=True), 5 * torch.randn(3, 24) + 2
    sae = training_sae(**settings) if kind == "training" else inference_sae(tmp_path, **settings)
    if settings.get("reshape_activations") and kind == "inference":
        x, other = x.unflatten(-1, (4, 6)), other.unflatten(-1, (4, 6))
    unused = copied(sae)
    want, want_other = unused(x), unused(other)
    torch.testing.assert_close(sae(x), want)
    acts = sae.encode(x)  # the next copy is made in the middle of a call
    twin = copied(sae)
    torch.testing.assert_close(twin(other), want_other)
    twin.encode(other)
    torch.testing.assert_close(sae.decode(acts), want)  # and that call is not disturbed
    with torch.no_grad():
        sae.W_dec.zero_()
    torch.testing.assert_close(twin(other), want_other)
    assert twin.cfg == sae.cfg
    assert twin.cfg is not sae.cfg
    assert twin.budget == sae.budget if kind == "inference" else twin.budgets == sae.budgets


def test_a_training_copy_goes_on_from_where_the_original_was() -> None:
    sae = training_sae(normalize_activations="layer_norm")
    sae.checks_activations = False  # as a trainer arranges it that checks by itself
    twin = copy.deepcopy(sae)
    assert twin.checks_activations
    x = torch.randn(20, 24)
    for each in (sae, twin):
        loss = each.training_forward_pass(TrainStepInput(x, {}, None, 1, False)).loss
        loss.backward()
    for p, q in zip(sae.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
        assert p.grad is not q.grad


def test_decoding_before_encoding_says_so(tmp_path: Path) -> None:
    sae = inference_sae(tmp_path, normalize_activations="layer_norm")
    with pytest.raises(RuntimeError, match="needs the norms of the latest encode"):
        sae.decode(torch.zeros(2, 96))
    sae = inference_sae(tmp_path, reshape_activations="hook_z")
    with pytest.raises(RuntimeError, match="learns the width of a head from encode"):
        sae.decode(torch.zeros(2, 96))


def test_hook_z_joins_and_splits_heads(tmp_path: Path) -> None:
    sae = inference_sae(tmp_path, reshape_activations="hook_z")
    z = torch.randn(2, 5, 4, 6)
    assert sae.decode_budgets(sae.encode_ordered(z), [1, 8]).shape == (2, 2, 5, 4, 6)
    assert sae(z).shape == z.shape
    torch.testing.assert_close(sae.at_k(8)(z), sae(z))


@pytest.mark.parametrize("rescale", [True, False])
def test_at_k_is_a_stock_sae_on_the_same_weights(rescale: bool, tmp_path: Path, x: Any) -> None:
    sae = inference_sae(tmp_path, rescale_acts_by_decoder_norm=rescale)
    stock = sae.at_k(3)
    assert type(stock) is TopKSAE
    assert stock.cfg.architecture() == "topk"
    assert stock.cfg.k == 3
    assert all(getattr(stock, n) is getattr(sae, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    assert set(stock.hook_dict) == set(sae.hook_dict)
    assert not set(map(id, stock.hook_dict.values())) & set(map(id, sae.hook_dict.values()))
    stock.cfg.metadata.note = "own"
    assert "note" not in sae.cfg.metadata
    with sae.using_budget(3):
        torch.testing.assert_close(stock(x), sae(x))
    stock.save_model(tmp_path / "stock")
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "stock")(x), stock(x))


def test_an_exported_sae_needs_no_plugin(sae: HierarchicalTopKSAE, x: Any, tmp_path: Path) -> None:
    sae.at_k(3).save_model(tmp_path / "stock")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; from sae_lens import SAE\n"
        f"sae = SAE.load_from_disk({str(tmp_path / 'stock')!r})\n"
        f"torch.save(sae(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r})\n"
        "assert 'hsae_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    with sae.using_budget(3):
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), sae(x))


def test_save_and_load_are_bitwise_equal(sae: HierarchicalTopKSAE, x: Any, tmp_path: Path) -> None:
    sae.cfg.default_budget = 4
    sae.save_model(tmp_path / "again")
    again = SAE.load_from_disk(tmp_path / "again")
    assert type(again) is HierarchicalTopKSAE
    assert again.budget == 4
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    for name, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with sae.using_budget(4):
        assert torch.equal(again(x), sae(x))


def test_a_training_sae_saves_whole_and_loads(tmp_path: Path) -> None:
    sae = training_sae(budgets=[1, 4, 8], budget_weights=[1.0, 2.0, 3.0], default_budget=4)
    sae.save_model(tmp_path / "sae")
    again = TrainingSAE.load_from_disk(tmp_path / "sae")
    assert type(again) is HierarchicalTopKTrainingSAE
    assert again.budgets == [1, 4, 8]
    assert again.cfg.budget_weights == [1.0, 2.0, 3.0]
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in sae.state_dict().items())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["sae"], "nothing half-written is left"


def test_numpys_whole_numbers_become_pythons(tmp_path: Path, x: Any) -> None:
    sizes = {"d_in": np.int64(24), "d_sae": np.int32(96), "k": np.int64(8)}
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(**sizes, default_budget=np.int16(4)))
    assert sae.budget == 4
    sae.budget = np.int64(3)
    with sae.using_budget(np.int64(2)):
        assert type(sae.budget) is int
    assert type(sae.budget) is int
    stock = sae.at_k(np.int64(3))
    torch.testing.assert_close(stock(x), sae(x))
    sae.decode_budgets(sae.encode_ordered(x), np.array([1, 8]))
    stock.save_model(tmp_path / "stock")
    sae.save_model(tmp_path / "sae")
    assert SAE.load_from_disk(tmp_path / "sae").cfg == sae.cfg

    training = training_sae(
        **sizes,
        default_budget=np.int64(4),
        budgets=np.array([2, 8]),
        budget_weights=np.array([1, 2], dtype=np.float32),
    )
    training.save_model(tmp_path / "training")
    assert TrainingSAE.load_from_disk(tmp_path / "training").cfg == training.cfg
    training.save_inference_model(tmp_path / "inference")
    assert SAE.load_from_disk(tmp_path / "inference").budget == 4


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float64(2), "2", None])
@pytest.mark.parametrize("field", ["d_in", "d_sae", "k"])
def test_what_is_no_whole_number_is_refused(field: str, value: Any) -> None:
    for config in (HierarchicalTopKSAEConfig, HierarchicalTopKTrainingSAEConfig):
        with pytest.raises(ValueError, match=f"{field} must be a whole number, got"):
            config(**{"d_in": 24, "d_sae": 96, "k": 8, field: value})


@pytest.mark.parametrize("rescale", [True, False])
def test_the_inference_form_computes_the_same(rescale: bool, tmp_path: Path, x: Any) -> None:
    trained = training_sae(rescale_acts_by_decoder_norm=rescale, dtype="float64")
    trained.save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.metadata.training_architecture == "hierarchical_topk"
    torch.testing.assert_close(sae.encode(x), trained.encode(x))
    torch.testing.assert_close(sae(x.double()), trained(x.double()))


def test_folding_decoder_norms(tmp_path: Path, x: torch.Tensor) -> None:
    sae = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(
            d_in=24, d_sae=96, k=8, rescale_acts_by_decoder_norm=True, dtype="float64"
        )
    )
    before_acts, before = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96, dtype=torch.float64))
    torch.testing.assert_close(sae.encode(x), before_acts)
    torch.testing.assert_close(sae(x), before)

    folded = inference_sae(tmp_path)  # its norms are 1
    weights = folded.W_dec.clone()
    folded.fold_W_dec_norm()
    assert torch.equal(folded.W_dec, weights)
    unfoldable = inference_sae(tmp_path, rescale_acts_by_decoder_norm=False)
    with pytest.raises(NotImplementedError, match="change the order"):
        unfoldable.fold_W_dec_norm()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("b_dec_in", [True, False])
def test_folding_whitening_and_scaling(rescale: bool, b_dec_in: bool, x: torch.Tensor) -> None:
    sae = training_sae(
        dtype="float64", rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=b_dec_in
    )
    torch.manual_seed(3)
    mean, M = torch.randn(24).double(), torch.randn(24, 24).double() / 5
    before = sae((x.double() - mean) @ M) @ M.inverse() + mean
    sae.fold_activation_whitening(mean, M, M.inverse())
    torch.testing.assert_close(sae(x.double()), before)

    sae = training_sae(dtype="float64", apply_b_dec_to_input=b_dec_in)
    before = sae(x.double() * 3) / 3
    sae.fold_activation_norm_scaling_factor(3.0)
    torch.testing.assert_close(sae(x.double()), before)


def test_hooks_fire_and_interventions_hold(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    _, cache = sae.run_with_cache(x)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))

    def keep_none(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(acts)

    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", keep_none)])
    torch.testing.assert_close(out, sae.b_dec.expand_as(x))


def test_registration_is_idempotent() -> None:
    hsae_lens.register()
    for module in (hsae_lens.sae.inference, hsae_lens.sae.training, hsae_lens.sae.registry):
        importlib.reload(module)
    reloaded = importlib.reload(hsae_lens)
    try:
        assert SAE_CLASS_REGISTRY["hierarchical_topk"][0] is reloaded.HierarchicalTopKSAE
        training = SAE_TRAINING_CLASS_REGISTRY["hierarchical_topk"][0]
        assert training is reloaded.HierarchicalTopKTrainingSAE
    finally:  # the other tests hold the first classes
        SAE_CLASS_REGISTRY["hierarchical_topk"] = (HierarchicalTopKSAE, HierarchicalTopKSAEConfig)
        SAE_TRAINING_CLASS_REGISTRY["hierarchical_topk"] = (
            HierarchicalTopKTrainingSAE,
            HierarchicalTopKTrainingSAEConfig,
        )


def test_another_packages_class_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAE_CLASS_REGISTRY, "hierarchical_topk", SAE_CLASS_REGISTRY["topk"])
    with pytest.raises(ValueError, match="already registered"):
        hsae_lens.register()
    assert SAE_CLASS_REGISTRY["hierarchical_topk"] is SAE_CLASS_REGISTRY["topk"]


def test_bad_budgets_and_widths(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    for k in (0, 9, 2.5, True, np.float32(2), np.True_):
        with pytest.raises(ValueError, match="budget"):
            sae.budget = k
        with pytest.raises(ValueError, match="budget"):
            sae.at_k(k)
    with pytest.raises(ValueError, match="outside 1..k=8"):
        sae.decode_budgets(sae.encode_ordered(x), [4, 9])
    with pytest.raises(ValueError, match="width d_sae=96"):
        sae.decode(torch.zeros(2, 95))
    with pytest.raises(ValueError, match="width d_in=24"):
        sae.encode(torch.zeros(2, 23))
    with pytest.raises(ValueError, match="k must be in 1..d_sae=4, got 5"):
        HierarchicalTopKSAEConfig(d_in=2, d_sae=4, k=5)
    with pytest.raises(ValueError, match="default_budget 5 is outside 1..4"):
        HierarchicalTopKSAEConfig(d_in=2, d_sae=8, k=4, default_budget=5)


def test_damaged_and_missing_files_say_so(sae: HierarchicalTopKSAE, tmp_path: Path) -> None:
    weights, config = sae.save_model(tmp_path / "broken")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is damaged or cut short"):
        HierarchicalTopKSAE.load_from_disk(tmp_path / "broken")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"sae_weights.safetensors missing"):
        HierarchicalTopKSAE.load_from_disk(tmp_path / "broken")
    with pytest.raises(FileNotFoundError, match="No saved SAE at"):
        HierarchicalTopKTrainingSAE.load_from_disk(tmp_path / "nowhere")
    assert json.loads(config.read_text())["architecture"] == "hierarchical_topk"


def test_a_save_that_fails_leaves_the_former_file(sae: Any, tmp_path: Path, monkeypatch) -> None:
    weights, _ = sae.save_model(tmp_path / "sae2")
    before = weights.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sae_lens.saes.sae.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        sae.save_model(tmp_path / "sae2")
    assert weights.read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["sae", "sae2"]


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the test's own, to which nothing can be renamed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory() as here:
        if not memory.is_dir() or memory.stat().st_dev == Path(here).stat().st_dev:
            pytest.skip("needs a second file system to write to, such as /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", ["inference", "training", "training's inference form"])
def test_the_output_folder_may_be_a_link_to_another_file_system(
    kind: str, sae: Any, tmp_path: Path, elsewhere: Path
) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(elsewhere)
    trained = training_sae()
    save = {
        "inference": sae.save_model,
        "training": trained.save_model,
        "training's inference form": trained.save_inference_model,
    }[kind]
    paths = save(linked)
    assert [path.parent for path in paths] == [linked, linked]
    assert linked.is_symlink()
    assert sorted(f.name for f in elsewhere.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    (TrainingSAE if kind == "training" else SAE).load_from_disk(linked)


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_save_leaves_the_folder_as_it_was(
    there: bool, sae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "run"
    if there:
        sae.save_model(folder)
        (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sae.W_dec.data.zero_()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens.saes.sae.json.dump", interrupt)  # the weights are written
    with pytest.raises(KeyboardInterrupt):
        sae.save_model(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "new").exists() == there, "an empty folder would look like a saved SAE"


def test_loading_without_the_import_fails_as_documented(sae: Any, tmp_path: Path) -> None:
    sae.save_model(tmp_path / "sae")
    code = f"from sae_lens import SAE; SAE.load_from_disk({str(tmp_path / 'sae')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyError: 'hierarchical_topk'" in run.stderr
