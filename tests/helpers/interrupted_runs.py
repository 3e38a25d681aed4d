"""Training runs that are killed, for test_interruptions: ``interrupted_runs.py FOLDER``.

Each run is a process of its own, forked from this one so that the packages are imported once. They
train on random activations that are cached: no language model is needed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Array2D, Dataset, Features
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from tqdm import tqdm

from hsae_lens import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig
from hsae_lens._util.private_names import InterruptedException
from hsae_lens.models.tokenizing import token_dataset
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner

HOOK = "blocks.0.hook_resid_post"
CONTEXT, D_IN, BATCH = 16, 32, 64
KILLS = 8
PATIENCE = 30  # seconds
STOPPED = 3  # exit status of a run that stopped when it was asked to


def train(folder: Path, activations: Path, **settings: Any) -> None:
    cfg: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
        sae=HierarchicalTopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=1024,
            k=4,
            normalize_activations=settings.pop("normalize_activations", "none"),
        ),
        model_name="none",
        hook_name=HOOK,
        context_size=CONTEXT,
        use_cached_activations=True,
        cached_activations_path=str(activations),
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=8,
        n_batches_in_buffer=16,
        checkpoint_path=str(folder / "checkpoints"),
        output_path=str(folder / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
        **settings,
    )
    tokens = token_dataset(torch.zeros(8, CONTEXT, dtype=torch.int64))
    model: Any = torch.nn.Module()  # never asked
    HierarchicalTopKTrainingRunner(cfg, override_dataset=tokens, override_model=model).run()


def forked(folder: Path, run: Callable[[], None]) -> int:
    """Begins a run; returns the process's number. What it says goes to ``folder/said.txt``."""
    folder.mkdir()
    said = os.open(folder / "said.txt", os.O_CREAT | os.O_WRONLY)
    pid = os.fork()
    if pid:
        return pid
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        run()
    except InterruptedException:
        os._exit(STOPPED)
    os._exit(0)


def until(happened: Callable[[], Any]) -> None:
    until_when = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < until_when:
        time.sleep(0.001)


def ended(pid: int) -> str:
    """Waits for a process; how it ended."""
    statuses: list[int] = []

    def has_ended() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        statuses.extend([status] * bool(done))
        return bool(done)

    until(has_ended)
    if not statuses:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "did not stop"
    return str(os.waitstatus_to_exitcode(statuses[0]))


def killed_while_saving(folder: Path, activations: Path, moment: float) -> None:
    """A checkpoint at every step: most of the time goes into saving."""
    steps = 10_000
    settings = {"training_tokens": steps * BATCH, "n_checkpoints": steps}
    pid = forked(folder, lambda: train(folder, activations, **settings))
    until(lambda: list(folder.glob("checkpoints/*/[0-9]*")))
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def killed_at_the_last_save(folder: Path, activations: Path) -> None:
    def dies(self: Any, path: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        HierarchicalTopKTrainingSAE.save_inference_model = dies  # type: ignore[method-assign]
        train(folder, activations, training_tokens=2 * BATCH)

    print(ended(forked(folder, run)))


def terminated_during_the_norm_estimate(folder: Path, activations: Path) -> None:
    settings = {
        "normalize_activations": "expected_average_only_in",
        "n_batches_for_norm_estimate": 10_000_000,
        "training_tokens": BATCH,
    }
    pid = forked(folder, lambda: train(folder, activations, **settings))
    until(lambda: "Estimating" in (folder / "said.txt").read_text())
    os.kill(pid, signal.SIGTERM)
    print(ended(pid))


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    # tqdm's own lock is one for all processes: a run killed with it would hold up the next ones.
    tqdm.set_lock(threading.RLock())
    random.seed(0)
    activations = folder / "activations"
    features = Features({HOOK: Array2D(shape=(CONTEXT, D_IN), dtype="float32")})
    rows = {HOOK: list(torch.randn(64, CONTEXT, D_IN).numpy())}
    Dataset.from_dict(rows, features=features).save_to_disk(str(activations))
    for n in range(KILLS):
        killed_while_saving(folder / f"killed-{n}", activations, random.uniform(0, 0.2))
    killed_at_the_last_save(folder / "last", activations)
    terminated_during_the_norm_estimate(folder / "terminated", activations)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
