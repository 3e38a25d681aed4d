"""Excerpts, explanations and their scores; the judge that costs money is a server here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.judge_server import JudgeServer
from sae_lens import SAE

from hsae_lens.evaluation.autointerp.excerpts import Excerpt, LatentExamples, latent_examples
from hsae_lens.evaluation.autointerp.judges import CachedJudge, EndpointJudge
from hsae_lens.evaluation.autointerp.scoring import _balanced_accuracy, asking_cost, score_latents
from hsae_lens.sae.codes import each_code


@pytest.fixture(scope="module")
def examples(shipped_sae: Any, smollm: Any, smollm_tokens: torch.Tensor) -> list[LatentExamples]:
    return latent_examples(shipped_sae, smollm, smollm_tokens, per_bin=3)


def example(latent: int) -> LatentExamples:
    def excerpts(kind: str) -> list[Excerpt]:
        return [Excerpt(f"{kind} {latent} ", f"word{n}", " after") for n in range(2)]

    return LatentExamples(
        latent, (1, 8), excerpts("shown"), excerpts("firing"), excerpts("silent"), excerpts("other")
    )


EXAMPLES = [example(latent) for latent in range(3)]


def test_excerpts_are_what_they_are_said_to_be(
    examples: list[LatentExamples], shipped_sae: Any, smollm: Any, smollm_tokens: torch.Tensor
) -> None:
    assert {e.ranks for e in examples} == {(1, 8), (9, 32), (33, 128)}
    # In the same batches: in others bfloat16 rounds otherwise on some machines, and ranks change.
    indices = torch.cat([b.code.indices for b in each_code(shipped_sae, smollm, smollm_tokens)])
    words = [[smollm.tokenizer.decode([t]) for t in row] for row in smollm_tokens.tolist()]

    def places(excerpt: Excerpt) -> list[tuple[int, int]]:
        whole = excerpt.before + excerpt.marked + excerpt.after
        return [
            (row, at)
            for row, texts in enumerate(words)
            if whole in "".join(texts)
            for at, word in enumerate(texts)
            if word == excerpt.marked and "".join(texts[:at]).endswith(excerpt.before)
        ]

    for latent in examples[::3]:
        low, high = latent.ranks
        for excerpt in latent.firing + latent.shown:
            ranks = [
                (indices[row, at] == latent.latent).nonzero().flatten().tolist()
                for row, at in places(excerpt)
            ]
            assert any(r and low <= r[0] + 1 <= high for r in ranks), excerpt
        for excerpt in latent.silent:
            fires = [(indices[row, at] == latent.latent).any() for row, at in places(excerpt)]
            assert not all(fires)
        for right, wrong in zip(latent.firing, latent.mismarked, strict=True):
            assert right.plain() == wrong.plain()
            assert right.with_mark() != wrong.with_mark()


@pytest.mark.parametrize("latents", ["0", "-1"])
def test_no_latents_are_not_all_latents(
    latents: str, tiny_gemma2: Any, tiny_tokens: Any, tmp_path: Path
) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    with pytest.raises(ValueError, match=f"Give 1 or more latents .*--latents.* got {latents}"):
        latent_examples(sae, tiny_gemma2, tiny_tokens, per_bin=int(latents))


def test_a_judge_that_knows_scores_one_and_a_guesser_one_half(
    examples: list[LatentExamples], judge_server: JudgeServer
) -> None:
    by_explanation = {f"it is {e.latent} {e.ranks}": e for e in examples}

    def knows(prompt: str) -> str:
        for explanation, latent in by_explanation.items():
            if explanation not in prompt:
                continue
            lines = re.findall(r"^(\d+)\. (.*)$", prompt, re.MULTILINE)
            marked = "<<" in lines[0][1]
            right = {e.with_mark() if marked else e.plain() for e in latent.firing}
            return ", ".join(n for n, text in lines if text in right) or "none"
        shown = prompt.split("\n- ")[1].split("\n")[0]
        return next(
            f"it is {e.latent} {e.ranks}" for e in examples if e.shown[0].with_mark() == shown
        )

    judge_server.answer = knows
    table = score_latents(examples, EndpointJudge("m", judge_server.url), progress=False)
    assert list(table["latent"]) == [e.latent for e in examples]
    assert (table["detection"] > 0.85).all()  # an excerpt may stand twice in the text
    assert (table["fuzzing"] > 0.85).all()
    asked = asking_cost(examples)
    assert asked["prompts"] == len(judge_server.prompts) == 3 * len(examples)
    assert asked["tokens"] == pytest.approx(sum(map(len, judge_server.prompts)) / 4, rel=0.1)

    judge_server.answer = lambda prompt: ", ".join(map(str, range(1, 11)))
    table = score_latents(examples, EndpointJudge("m", judge_server.url), progress=False)
    assert (table["detection"] == 0.5).all()
    judge_server.answer = lambda prompt: "I would rather not say."
    table = score_latents(examples, EndpointJudge("m", judge_server.url), progress=False)
    assert table["detection"].isna().all()
    assert table["fuzzing"].isna().all()


def test_answers_are_kept_and_an_interrupted_run_goes_on(
    examples: list[LatentExamples], judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge = CachedJudge(EndpointJudge("m", judge_server.url), tmp_path / "judge.jsonl")
    want = score_latents(examples[:2], judge, progress=False)
    assert len(judge_server.prompts) == 6
    file = tmp_path / "judge.jsonl"
    file.write_text(file.read_text()[:-20])  # cut off while the last answer was written
    again = CachedJudge(EndpointJudge("m", judge_server.url), file)
    assert asking_cost(examples[:2], known=again.known)["prompts"] == 1
    assert asking_cost(examples[:3], known=again.known)["prompts"] == 4
    assert score_latents(examples[:2], again, progress=False).equals(want)
    assert len(judge_server.prompts) == 7
    third = CachedJudge(EndpointJudge("m", judge_server.url), file)
    score_latents(examples[:2], third, progress=False)
    assert len(judge_server.prompts) == 7
    score_latents(
        examples[:1], CachedJudge(EndpointJudge("another", judge_server.url), file), False
    )
    assert len(judge_server.prompts) == 10, "another judge's answers are its own"


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("1, 2", 1.0),
        (" 1,2.\n", 1.0),
        ("1", 0.75),
        ("none", 0.5),
        ('"None".', 0.5),
        ("3,4", 0.0),
        ("7", None),
        ("?", None),
        ("", None),
        ("1. 2.", None),
        ("1 2", None),
        ("1, 2 and 3; not in 4", None),
        ("Excerpts 1, 2", None),
        ("None of these but 1", None),
        ("1-2", None),
        ("-1, 2", None),
        ("1" * 5000, None),
    ],
)
def test_only_the_form_asked_for_is_scored(answer: str, score: float | None) -> None:
    got = _balanced_accuracy(answer, [True, True, False, False])
    assert got == score if score is not None else got != got


@pytest.mark.parametrize("nothing", [None, "", "  \n", ["parts"]])
def test_a_prompt_without_an_answer_is_counted_and_asked_again_by_the_next_run(
    nothing: Any, judge_server: JudgeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge_server.answer = lambda prompt: nothing if "shown 1" in prompt else "1, 2"
    file = tmp_path / "judge.jsonl"
    table = score_latents(EXAMPLES, CachedJudge(EndpointJudge("m", judge_server.url), file), False)
    assert table["unanswered"].tolist() == [0, 3, 0]
    assert table["detection"].isna().tolist() == [False, True, False]
    assert len(judge_server.prompts) == 3 + 3 + 3, "the middle one three times, then not quizzed"
    assert "no answer in the form asked for to 3 of 9 questions" in caplog.text
    judge_server.answer, judge_server.prompts = lambda prompt: "1, 2", []
    again = CachedJudge(EndpointJudge("m", judge_server.url), file)
    assert score_latents(EXAMPLES, again, False)["unanswered"].sum() == 0
    assert len(judge_server.prompts) == 3, "only what had no answer"


def test_prose_is_counted_and_not_scored(judge_server: JudgeServer) -> None:
    judge_server.answer = lambda prompt: "1, 2 and 3; not in 4"
    table = score_latents(EXAMPLES, EndpointJudge("m", judge_server.url), False)
    assert table["unanswered"].tolist() == [2, 2, 2]
    assert table[["detection", "fuzzing"]].isna().all(axis=None)
