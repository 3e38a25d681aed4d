"""Small behavioural tasks, and which behaviours survive at k latents."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from sae_lens import SAE

from hsae_lens import load_pretrained
from hsae_lens.evaluation.tasks.builtin import TASKS, make_task
from hsae_lens.evaluation.tasks.evaluate import evaluate_tasks
from hsae_lens.evaluation.tasks.pairs import Pair, tokenize_pairs
from hsae_lens.models.hooks import hook_activations, logits_with
from hsae_lens.models.token_mask import TokenMask


@pytest.mark.parametrize("name", TASKS)
def test_pairs_differ_only_in_what_decides(name: str, smollm: Any) -> None:
    task = make_task(name, smollm.tokenizer, 48)
    assert task.clean.shape == task.corrupt.shape
    assert len(task.clean) == 48
    assert (task.clean[:, 0] == smollm.tokenizer.bos_token_id).all()
    assert (task.right != task.wrong).all()
    assert not (task.clean == task.corrupt).all(1).any()
    assert len({tuple(row) for row in task.clean.tolist()}) == 48
    again = make_task(name, smollm.tokenizer, 48)
    assert torch.equal(task.clean, again.clean)


def test_the_real_model_does_them_and_latents_keep_them(smollm: Any) -> None:
    sae = load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
    names = ["agreement", "pronoun"]
    table = evaluate_tasks(sae, smollm, names, [1, 128], n=16, progress=False)
    assert (table["model_accuracy"] > 0.9).all()
    by = table.set_index(["task", "k"])
    for name in names:
        assert by.loc[(name, 128), "retention"] > 0.8
        assert by.loc[(name, 1), "logit_retention"] < by.loc[(name, 128), "logit_retention"]


def test_a_model_at_chance_retains_nothing(tiny_gemma2: Any, tmp_path: Path) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    pairs = [Pair("a b", "b a", "a", "b"), Pair("b a", "a b", "b", "a")] * 8
    task = tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer)
    table = evaluate_tasks(sae, tiny_gemma2, [task], [8], progress=False)
    assert table["model_accuracy"].iloc[0] == 0.5
    assert math.isnan(table["retention"].iloc[0])
    assert math.isnan(table["logit_retention"].iloc[0])


@torch.no_grad()
def test_answers_are_those_of_the_spliced_model(any_sae: Any, tiny_gemma2: Any) -> None:
    pairs = [Pair(f"{a} {b}", f"{b} {a}", a, b) for a, b in itertools.permutations("abcdefgh", 2)]
    task = tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer, 16)
    mask = TokenMask.from_model(tiny_gemma2)
    table = evaluate_tasks(any_sae, tiny_gemma2, [task], [1, 8], mask=mask, progress=False)
    hook = any_sae.cfg.metadata.hook_name
    original = hook_activations(tiny_gemma2, task.clean, hook)
    keep = mask(task.clean, original.flatten(2)).reshape(16, -1, *[1] * (original.ndim - 2))
    for k, got in zip(table["k"], table["logit_diff"], strict=True):
        with any_sae.using_budget(k):
            new = torch.where(keep, any_sae(original).to(original), original)
        logits = logits_with(tiny_gemma2, task.clean, hook, new)[:, -1].double()
        diff = logits.gather(1, task.right[:, None]) - logits.gather(1, task.wrong[:, None])
        near = 0.001 if any_sae.dtype == torch.bfloat16 else 1e-5
        assert got == pytest.approx(diff.mean().item(), abs=near)


def test_tasks_go_through_the_model_in_batches(tiny_gemma2: Any, tmp_path: Path) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    words = [chr(97 + n) for n in range(12)]
    pairs = [Pair(f"{a} {b}", f"{b} {a}", a, b) for a, b in itertools.permutations(words, 2)]
    task = tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer, 40)
    sizes: list[int] = []
    handle = tiny_gemma2.unembed.register_forward_hook(lambda _, x, out: sizes.append(len(out)))
    try:
        whole = evaluate_tasks(
            sae, tiny_gemma2, [task], [1, 8], batch_size=len(task), progress=False
        )
        assert set(sizes) == {40}
        sizes.clear()
        parts = evaluate_tasks(sae, tiny_gemma2, [task], [1, 8], progress=False)
        assert max(sizes) == 16
    finally:
        handle.remove()
    assert list(parts.columns) == list(whole.columns)
    for column in whole.columns.drop(["task", "retention", "logit_retention"]):
        assert parts[column].to_numpy() == pytest.approx(whole[column].to_numpy(), abs=1e-5)


def test_tasks_that_do_not_fit_are_said(smollm: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean 'greater_than'"):
        make_task("greater", smollm.tokenizer)
    long = [Pair("a", "b", " antidisestablishmentarianism", " b")]
    with pytest.raises(ValueError, match="is several tokens in this tokenizer"):
        tokenize_pairs("mine", long, smollm.tokenizer)
    uneven = [Pair("a b c", "a", " b", " c")]
    with pytest.raises(ValueError, match="are of different length"):
        tokenize_pairs("mine", uneven, smollm.tokenizer)
    with pytest.raises(ValueError, match="10000 are needed"):
        make_task("pronoun", smollm.tokenizer, 10_000)
