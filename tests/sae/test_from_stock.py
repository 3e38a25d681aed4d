"""What a hierarchical SAE takes over: the source's reconstruction at its own k, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.converted import converted_at_its_own
from sae_lens import (
    SAE,
    AbsTopKSAE,
    AbsTopKSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAE
from hsae_lens.sae.from_stock import take_over

D_IN, D_SAE, K = 17, 40, 5


def filled(sae: Any) -> Any:
    """The SAE with random weights, of which nothing is zero or one."""
    torch.manual_seed(0)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return sae


def stock_topk(**settings: Any) -> TopKSAE:
    return filled(TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, **settings)))


def inference(sae: HierarchicalTopKTrainingSAE, folder: Path) -> HierarchicalTopKSAE:
    sae.save_inference_model(folder)
    return HierarchicalTopKSAE.load_from_disk(folder)


@pytest.mark.parametrize("n", [1, 33])
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_a_topk_reconstructs_at_its_k_what_it_did(
    rescales: bool, normalization: Any, centred: bool, n: int, tmp_path: Path
) -> None:
    source = stock_topk(
        rescale_acts_by_decoder_norm=rescales,
        normalize_activations=normalization,
        apply_b_dec_to_input=centred,
    )
    x = torch.randn(n, D_IN) * 3
    converted = HierarchicalTopKTrainingSAE.from_sae(source)
    assert (converted.cfg.k, converted.cfg.metadata.source_k) == (K, K)
    torch.testing.assert_close(converted(x), source(x))
    saved = inference(converted, tmp_path)
    torch.testing.assert_close(saved(x), source(x))


def test_more_budgets_than_the_source_s_leave_its_own_exact(tmp_path: Path) -> None:
    source, x = stock_topk(), torch.randn(20, D_IN)
    wider = inference(HierarchicalTopKTrainingSAE.from_sae(source, k=2 * K), tmp_path)
    with wider.using_budget(K):
        torch.testing.assert_close(wider(x), source(x))


@pytest.mark.parametrize("kind", [TopKTrainingSAE, BatchTopKTrainingSAE])
def test_saelens_training_saes_convert_too(kind: Any) -> None:
    cfg: Any = TopKTrainingSAEConfig if kind is TopKTrainingSAE else BatchTopKTrainingSAEConfig
    source = filled(kind(cfg(d_in=D_IN, d_sae=D_SAE, k=K, use_sparse_activations=False)))
    converted = HierarchicalTopKTrainingSAE.from_sae(source)
    assert converted.cfg.k == K
    torch.testing.assert_close(converted.W_dec, source.W_dec)
    if kind is TopKTrainingSAE:
        x = torch.randn(9, D_IN)
        torch.testing.assert_close(converted(x), source(x))


@pytest.mark.parametrize("thresholds", ["one", "many"])
def test_a_jumprelu_reconstructs_above_one_threshold_what_it_did(
    thresholds: str, tmp_path: Path
) -> None:
    source = filled(JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE)))
    with torch.no_grad():
        source.threshold.copy_(torch.rand(D_SAE) * 3 + 0.1)
        if thresholds == "one":
            source.threshold.copy_(1.3 / source.W_dec.norm(dim=-1))
    x = torch.randn(50, D_IN) * 2
    used = (source.encode(x) > 0).sum(-1)
    assert used.float().std() > 0.5, "tokens use as many latents each: nothing is tested"
    converted = HierarchicalTopKTrainingSAE.from_sae(source, k=D_SAE)
    assert converted.cfg.rescale_acts_by_decoder_norm == (thresholds == "one")
    torch.testing.assert_close(converted_at_its_own(source, x, tmp_path), source(x))


def test_latents_without_a_threshold_get_a_typical_one(caplog: pytest.LogCaptureFixture) -> None:
    source = filled(JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE)))
    with torch.no_grad():
        source.threshold.copy_(torch.rand(D_SAE) + 0.3)
        source.threshold[:3] = torch.tensor([0.0, -1.0, 0.0])
    taken = take_over(source)
    assert "3 of 40 latents have no threshold above 0" in caplog.text
    x = torch.randn(60, D_IN)
    pre = (x - taken.weights["b_dec"]) @ taken.weights["W_enc"] + taken.weights["b_enc"]
    assert taken.threshold is not None
    assert torch.equal((pre > taken.threshold)[:, 3:], (source.encode(x) > 0)[:, 3:])
    torch.testing.assert_close(
        pre[:, :3].relu() @ taken.weights["W_dec"][:3],
        ((x - source.b_dec) @ source.W_enc[:, :3] + source.b_enc[:3]).relu() @ source.W_dec[:3],
    )


def test_batchtopk_as_saelens_saves_it_knows_its_k(tmp_path: Path) -> None:
    cfg = BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3.5, use_sparse_activations=False)
    training = filled(BatchTopKTrainingSAE(cfg))
    training.topk_threshold.fill_(0.7)
    training.save_inference_model(tmp_path)
    source = SAE.load_from_disk(tmp_path)
    assert source.cfg.architecture() == "jumprelu"
    taken = take_over(source)
    assert taken.k == 4
    assert taken.threshold == pytest.approx(0.7, rel=1e-5)
    assert taken.settings["rescale_acts_by_decoder_norm"]


def test_the_source_is_not_changed_and_its_facts_go_over() -> None:
    source = stock_topk()
    source.cfg.metadata.model_name, source.cfg.metadata.frontier = "gpt2", [{"k": 1}]
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    converted = HierarchicalTopKTrainingSAE.from_sae(source, k=8, budgets=[2, 8])
    assert converted.budgets == [2, 8]
    assert converted.cfg.metadata.model_name == "gpt2"
    assert converted.cfg.metadata.frontier is None, "it is of another SAE"
    with torch.no_grad():
        converted.W_dec.zero_()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert source.cfg.metadata.frontier


def test_a_step_begins_from_the_source_even_without_a_b_dec() -> None:
    source = stock_topk()
    with torch.no_grad():
        source.b_dec.zero_()
    converted = HierarchicalTopKTrainingSAE.from_sae(source)
    from sae_lens.saes.sae import TrainStepInput

    x = torch.randn(64, D_IN) + 2
    output = converted.training_forward_pass(
        TrainStepInput(x, {}, None, n_training_steps=0, is_logging_step=False)
    )
    torch.testing.assert_close(output.sae_out, source(x))


def test_the_scaling_of_a_trainer_is_in_an_inference_sae_s_weights() -> None:
    source = stock_topk(normalize_activations="expected_average_only_in")
    converted = HierarchicalTopKTrainingSAE.from_sae(source)
    assert converted.cfg.normalize_activations == "none"
    x = torch.randn(4, D_IN)
    torch.testing.assert_close(converted(x), source(x))


def refused(sae: Any, match: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=match):
        HierarchicalTopKTrainingSAE.from_sae(sae, **settings)


def test_what_cannot_be_converted_says_why() -> None:
    abstopk = AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    refused(abstopk, "signed")
    refused(StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)), "neither a number of latents")
    jumprelu = filled(JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE)))
    jumprelu.threshold.data.abs_()
    refused(jumprelu, "--k")
    jumprelu.threshold.data.zero_()
    refused(jumprelu, "on wherever it is positive", k=4)
    refused(stock_topk(), "at most|d_sae", k=D_SAE + 1)
    refused(stock_topk(), "d_in cannot be set", d_in=3)
    damaged = stock_topk()
    damaged.b_enc.data[3] = torch.nan
    refused(damaged, "b_enc holds NaN")
    empty = stock_topk()
    empty.W_dec.data[:2] = 0
    refused(empty, "2 of 40 decoder rows are zero")
