"""``hsae pilot``: looks, tries settings within a time box, confirms, and writes a recipe."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path

import torch
from tqdm.auto import tqdm

from hsae_lens._util.paths import expand_home
from hsae_lens._util.tables import write_csv
from hsae_lens.comparison.judging import Judged, JudgeSAE, judge_with
from hsae_lens.comparison.material import (
    CHARACTERS,
    SAME_KIND,
    Material,
    collect,
    some_documents,
)
from hsae_lens.evaluation.frontier.own_metrics import open_metrics, try_metrics
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import documents_of, standard_library
from hsae_lens.models.tokenizing import evenly, tokenize
from hsae_lens.pilot.config import LATENTS_PER_DIMENSION, PilotConfig, check_pilot_settings
from hsae_lens.pilot.confirming import DEFAULTS, RECOMMENDED, Confirmed, confirm
from hsae_lens.pilot.folder import PilotFolder
from hsae_lens.pilot.full_run import full_run, peak_memory
from hsae_lens.pilot.in_short import PilotResult, what_to_do
from hsae_lens.pilot.look import Look, look_at
from hsae_lens.pilot.page import points_table, write_pilot_page
from hsae_lens.pilot.planning import Costs, PilotPlan, TimeBox, plan_pilot
from hsae_lens.pilot.plots import plot_pilot
from hsae_lens.pilot.points import Workbench
from hsae_lens.pilot.recipe import recipe_lines, recipe_text, write_recipe
from hsae_lens.pilot.search import Findings, Measure, Measured, PilotSettings, Point, search
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAEConfig
from hsae_lens.training.learning_rate import suggested_lr

logger = logging.getLogger(__name__)

SEEN_TOKENS = 8192  # for the look

TIMED_STEPS = 24


def run_pilot(cfg: PilotConfig) -> PilotResult:
    """Settles the settings of a training on a user's own model and text, in the time it is given.

    Looks at the activations; trains small SAEs, one setting varied at a time from the best so far;
    trains the defaults and the best anew with other seeds, and judges them on held-out text. Leaves
    in ``out``: ``pilot.html``, ``pilot.png``, ``points.csv``, ``frontier.csv``, the SAEs of the end
    in ``saes/``, and the recipe, which has the defaults unless the others are better beyond their
    interval.

    An interrupted pilot goes on with the point it was at; the time that it spent counts.

    Raises:
        ValueError: for settings that cannot be, a folder of something else, a recipe that is there,
            too little text, or a time box too short for two points; before anything is trained.
        FileNotFoundError: if there is no such text.
        FloatingPointError: if activations are NaN or infinite.
    """
    box = TimeBox(60 * cfg.minutes)
    check_pilot_settings(cfg)
    folder = PilotFolder(cfg.out)
    folder.check(cfg)
    box.add(folder.spent())
    metrics, libraries = open_metrics(cfg.metrics), peak_memory()
    model = open_model(cfg.model, cfg.device, cfg.dtype)
    look, plan, material = folder.prepared() or _prepare(cfg, model, box, folder)
    if cfg.text is None and not folder.text.exists():
        folder.keep_text(standard_library())
    try_metrics(metrics, look.d_in, cfg.device)
    default, bench = _defaults(cfg, look.d_in), _bench(cfg, material)
    costs = Costs(plan, default)
    measure = _measuring(bench, costs, box, folder)
    findings = search(default, plan.steps, measure, cfg.judged_budgets[0])
    judge = judge_with(material, model if cfg.ce_tokens else None, metrics=metrics)
    confirmed = _confirmed(bench, judge, findings, costs, box, folder)
    settings = _settings(cfg, findings, confirmed)
    step_seconds, held = findings.points[0].step_seconds, material.held[SAME_KIND]
    result = PilotResult(
        model_name=cfg.model,
        hook_name=cfg.hook_name,
        look=look,
        findings=findings,
        confirmed=confirmed,
        settings=settings,
        run=full_run(cfg, settings, model, look, step_seconds, libraries),
        budgets=cfg.judged_budgets,
        pilot_seconds=box.spent(),
        held_tokens=len(held.activations),
        held_documents=held.n_documents,
        own_metrics={name: metric.label for name, metric in metrics.items()},
    )
    _write(cfg, result, folder)
    return result


def _prepare(
    cfg: PilotConfig, model: HookedModel, box: TimeBox, folder: PilotFolder
) -> tuple[Look, PilotPlan, Material]:
    """Look, plan and activations, kept in the folder for a command that goes on."""
    documents = documents_of(cfg.text) if cfg.text else standard_library()
    some = some_documents(documents, CHARACTERS * SEEN_TOKENS)
    tokens = tokenize(some, model.tokenizer, cfg.context_size, progress=False)
    look = look_at(model, tokens[evenly(tokens, SEEN_TOKENS)], cfg.hook_name)
    for line in look.sentences():
        logger.info(line)
    default = _defaults(cfg, look.d_in)
    plan = plan_pilot(cfg, look, _step_seconds(cfg, default, look.d_in), box)
    material = collect(cfg.as_comparison(plan.train_tokens, default.d_sae), model)
    plan = plan.within(len(material.train), cfg.batch_size)
    folder.keep(cfg, look, plan, material)
    folder.keep_time(box.spent())
    return look, plan, material


def _defaults(cfg: PilotConfig, d_in: int) -> PilotSettings:
    usual = HierarchicalTopKTrainingSAEConfig(d_in=d_in, d_sae=cfg.k, k=cfg.k)
    d_sae = cfg.d_sae or max(LATENTS_PER_DIMENSION * d_in, cfg.k)
    return PilotSettings(
        lr=suggested_lr(d_sae, cfg.batch_size),
        budget_weights=str(usual.budget_weights),
        aux_loss_coefficient=float(usual.aux_loss_coefficient),
        d_sae=d_sae,
        k=cfg.k,
    )


def _bench(cfg: PilotConfig, material: Material) -> Workbench:
    facts = {
        "model_name": cfg.model,
        "hook_name": cfg.hook_name,
        "context_size": cfg.context_size,
    }
    return Workbench(material, cfg.judged_budgets, cfg.batch_size, cfg.device, facts)


def _step_seconds(cfg: PilotConfig, default: PilotSettings, d_in: int) -> float:
    """Seconds of a training step with the defaults, on random activations."""
    x = torch.randn(4 * cfg.batch_size, d_in, generator=torch.Generator().manual_seed(0))
    bench = _bench(cfg, Material(x, x, {}, math.inf))
    with tempfile.TemporaryDirectory() as folder:
        return bench.save_trained(Point(default, TIMED_STEPS), Path(folder))


def _measuring(bench: Workbench, costs: Costs, box: TimeBox, folder: PilotFolder) -> Measure:
    """What :func:`search` measures points with: those that are there are read."""
    bar = tqdm(desc="Points", unit="SAE")

    def measure(point: Point) -> Measured | None:
        measured = folder.read_point(point)
        if measured is None:
            # The first is measured in any case: the plan saw that there is time for it.
            if costs.seen and costs.of(point) + costs.at_the_end() > box.left():
                return None
            measured = bench.measured(point)
            folder.write_point(measured)
            folder.keep_time(box.spent())
        if measured.failed:
            logger.warning("%s could not be trained: %s", point.name, measured.failed)
        costs.learn(measured)
        bar.update()
        bar.set_postfix_str(f"{point.name}: {measured.merit():.4f}")
        return measured

    return measure


def _confirmed(
    bench: Workbench,
    judge: JudgeSAE,
    findings: Findings,
    costs: Costs,
    box: TimeBox,
    folder: PilotFolder,
) -> Confirmed:
    """The defaults, and the best where it differs, trained as long as time allows and judged."""
    steps = folder.steps_at_the_end(findings.best, costs.longest_at_the_end(box.left()))
    other = findings.settings_for(steps)
    points = {DEFAULTS: Point(findings.default, steps)}
    if other != findings.default:
        points[RECOMMENDED] = Point(other, steps)

    def judged(sae: HierarchicalTopKSAE) -> Judged:
        folder.keep_time(box.spent())
        return judge(sae, list(bench.budgets))

    first, again = (point.merit() for point in findings.points[:2])
    return confirm(points, bench, judged, folder.saes, (first, again))


def _settings(cfg: PilotConfig, findings: Findings, confirmed: Confirmed) -> PilotSettings:
    """The recipe's: the defaults, unless the others were better beyond their interval."""
    if not confirmed.holds:
        return findings.default
    return findings.settings_of_long(cfg.full_steps, confirmed.settings)


def _write(cfg: PilotConfig, result: PilotResult, folder: PilotFolder) -> None:
    """Tables, picture, page; last the recipe, with which a pilot is done."""
    out = folder.path
    write_csv(points_table(result), out / "points.csv")
    write_csv(result.confirmed.frontier, out / "frontier.csv")
    plot_pilot(result, out / "pilot.png", f"Pilot: {cfg.model}, {cfg.hook_name}")
    lines = recipe_lines(cfg, result.settings, result.look, _text_file(cfg, folder))
    text = recipe_text(lines, what_to_do(result))
    write_pilot_page(result, text, vars(cfg), out / "pilot.html")
    write_recipe(text, cfg.recipe_file)


def _text_file(cfg: PilotConfig, folder: PilotFolder) -> Path:
    return expand_home(cfg.text).absolute() if cfg.text else folder.text
