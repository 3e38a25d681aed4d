"""Small behavioural tasks: pairs of prompts, and how much of a behaviour survives at k latents."""

from hsae_lens.evaluation.tasks.builtin import TASKS, make_task
from hsae_lens.evaluation.tasks.evaluate import check_able, evaluate_tasks
from hsae_lens.evaluation.tasks.metrics import LogitDiff
from hsae_lens.evaluation.tasks.pairs import Pair, TokenizedTask, read_pairs, tokenize_pairs

__all__ = [
    "TASKS",
    "LogitDiff",
    "Pair",
    "TokenizedTask",
    "check_able",
    "evaluate_tasks",
    "make_task",
    "read_pairs",
    "tokenize_pairs",
]
