"""``hsae pilot``: looks, tries settings within a time box, confirms, and writes a recipe."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import replacing_file, write_json
from hsae_lens._util.tables import write_csv
from hsae_lens.comparison.judging import judge_with
from hsae_lens.comparison.material import (
    SAME_KIND,
    Material,
    collect,
    is_stored,
    read_material,
    some_documents,
    store_material,
)
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import documents_of, standard_library
from hsae_lens.models.tokenizing import evenly, tokenize
from hsae_lens.pilot.config import (
    LATENTS_PER_DIMENSION,
    MAY_CHANGE,
    PilotConfig,
    check_pilot_settings,
)
from hsae_lens.pilot.confirming import DEFAULTS, RECOMMENDED, SEED, Confirmed, confirm
from hsae_lens.pilot.full_run import FullRun, full_run
from hsae_lens.pilot.in_short import PilotResult, what_to_do
from hsae_lens.pilot.look import Look, look_at
from hsae_lens.pilot.page import points_table, write_pilot_page
from hsae_lens.pilot.planning import (
    PilotPlan,
    TimeBox,
    plan_pilot,
    relative_cost,
    updated_step_seconds,
)
from hsae_lens.pilot.plots import plot_pilot
from hsae_lens.pilot.points import Workbench, read_point, write_point
from hsae_lens.pilot.recipe import recipe_lines, recipe_text, write_recipe
from hsae_lens.pilot.search import Findings, Measure, Measured, PilotSettings, Point, search
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAEConfig
from hsae_lens.training.learning_rate import suggested_lr

logger = logging.getLogger(__name__)

SEEN_TOKENS = 8192  # tokens

TIMED_STEPS = 24

STATE, POINTS_FOLDER, SAES_FOLDER, ACTIVATIONS = "pilot.json", "points", "saes", "activations"

OWN_TEXT = "text.jsonl"


def run_pilot(cfg: PilotConfig) -> PilotResult:
    """Settles the settings of a training on a user's own model and text, in the time it is given.

    Looks at the activations; trains small SAEs, one setting varied at a time from the best so far;
    trains the defaults and the best longer, and judges both on held-out text. Leaves in ``out``:
    ``pilot.html``, ``pilot.png``, ``points.csv``, ``frontier.csv``, the two SAEs in ``saes/``, and
    the recipe, which has the defaults unless the others are better beyond their interval.

    An interrupted pilot goes on with the point it was at; the time that it spent counts.

    Raises:
        ValueError: for settings that cannot be, a folder of something else, a recipe that is there,
            too little text, or a time box too short for two points; before anything is trained.
        FileNotFoundError: if there is no such text.
        FloatingPointError: if activations are NaN or infinite.
    """
    check_pilot_settings(cfg)
    out = Path(cfg.out)
    state = _begun(cfg, out)
    box = TimeBox(60 * cfg.minutes, state.get("seconds", 0.0) + _seconds_of_points(out))
    model = open_model(cfg.model, cfg.device, cfg.dtype)
    look, plan = _prepared(cfg, model, state, box, out)
    default = _defaults(cfg, look.d_in)
    material = read_material(out / ACTIVATIONS)
    bench = _bench(cfg, material)
    findings = search(default, plan.steps, _measuring(bench, default, plan, box, out))
    confirmed = _confirmed(cfg, model, bench, findings, plan, box)
    settings = default
    if confirmed.holds:
        full_steps = cfg.training_tokens // cfg.batch_size
        settings = findings.settings_of_long(full_steps, confirmed.settings)
    held = material.held[SAME_KIND]
    step = findings.points[0].step_seconds
    result = PilotResult(
        look, findings, confirmed, settings, _full_run(cfg, model, look, settings, step),
        cfg.judged_budgets, box.spent(), len(held.activations), held.n_documents,
    )  # fmt: skip
    _write(cfg, result)
    return result


def _begun(cfg: PilotConfig, out: Path) -> dict[str, Any]:
    """What an interrupted pilot in the folder has prepared; nothing for a new one."""
    file, given = out / STATE, _that_must_agree(cfg)
    if not file.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(
                f"{out} holds files that are not of a pilot: give another folder (out)."
            )
        return {}
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        differ = [name for name in given if state["settings"][name] != given[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove the whole folder {out}.") from error
    if differ:
        name = differ[0]
        raise ValueError(
            f"The pilot in {out} was begun with {name} {state['settings'][name]}, not "
            f"{given[name]}: give another folder (out), or the settings that it was begun with."
        )
    return state


def _that_must_agree(cfg: PilotConfig) -> dict[str, Any]:
    return {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in MAY_CHANGE}


def _seconds_of_points(out: Path) -> float:
    files = (out / POINTS_FOLDER).glob("[!.]*.json")
    return sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files)


def _prepared(
    cfg: PilotConfig, model: HookedModel, state: dict[str, Any], box: TimeBox, out: Path
) -> tuple[Look, PilotPlan]:
    """Look and plan, activations collected; kept for a command that goes on."""
    if state and is_stored(out / ACTIVATIONS):
        return Look(**state["look"]), PilotPlan(**state["plan"])
    documents = documents_of(cfg.text) if cfg.text else standard_library()
    some = some_documents(documents, 8 * SEEN_TOKENS)
    tokens = tokenize(some, model.tokenizer, cfg.context_size, progress=False)
    look = look_at(model, tokens[evenly(tokens, SEEN_TOKENS)], cfg.hook_name)
    for line in look.sentences():
        logger.info(line)
    default = _defaults(cfg, look.d_in)
    plan = plan_pilot(cfg, look, _step_seconds(cfg, default, look.d_in), box)
    store_material(
        collect(cfg.as_comparison(plan.train_tokens, default.d_sae), model), out / ACTIVATIONS
    )
    if cfg.text is None:
        with replacing_file(out / OWN_TEXT) as fresh:
            rows = (json.dumps({"text": document}) for document in documents)
            fresh.write_text("\n".join(rows) + "\n", encoding="utf-8")
    settings = _that_must_agree(cfg)
    kept = {"settings": settings, "look": asdict(look), "plan": asdict(plan)}
    write_json(kept | {"seconds": box.spent()}, out / STATE)
    return look, plan


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


def _measuring(
    bench: Workbench, default: PilotSettings, plan: PilotPlan, box: TimeBox, out: Path
) -> Measure:
    """What :func:`search` measures points with: those that are there are read."""
    folder, seen = out / POINTS_FOLDER, list[Measured]()
    bar = tqdm(desc="Points", unit="SAE")

    def measure(point: Point) -> Measured | None:
        measured = read_point(point, folder)
        if measured is None:
            if seen:  # the first is measured in any case: there was time for it
                step = updated_step_seconds(seen, default)
                needed = point.steps * step * relative_cost(point.settings, default)
                at_the_end = 2 * point.steps * step + plan.judge_seconds
                if needed + at_the_end > box.left():
                    return None
            measured = bench.measured(point)
            write_point(measured, folder)
        seen.append(measured)
        bar.update()
        bar.set_postfix_str(f"{point.name}: {measured.merit():.4f}")
        return measured

    return measure


def _confirmed(
    cfg: PilotConfig,
    model: HookedModel,
    bench: Workbench,
    findings: Findings,
    plan: PilotPlan,
    box: TimeBox,
) -> Confirmed:
    """The defaults, and the best where it differs, trained as long as time allows and judged."""
    step = updated_step_seconds(findings.points, findings.default)
    steps = replace(plan, step_seconds=step).longest_at_the_end(box.left())
    points = {DEFAULTS: Point(findings.default, steps, SEED)}
    if (other := findings.settings_for(steps)) != findings.default:
        points[RECOMMENDED] = Point(other, steps, SEED)
    judge = judge_with(bench.material, model if cfg.ce_tokens else None)
    folder = Path(cfg.out) / SAES_FOLDER
    return confirm(points, bench, judge, folder, findings.noise)


def _full_run(
    cfg: PilotConfig, model: HookedModel, look: Look, settings: PilotSettings, step: float
) -> FullRun:
    return full_run(
        settings, model, look.d_in,
        tokens=cfg.training_tokens, batch_size=cfg.batch_size, context_size=cfg.context_size,
        model_rate=look.tokens_per_second, step_seconds=step,
    )  # fmt: skip


def _write(cfg: PilotConfig, result: PilotResult) -> None:
    """Tables, picture, page; last the recipe, with which a pilot is done."""
    out = Path(cfg.out)
    write_csv(points_table(result), out / "points.csv")
    write_csv(result.confirmed.frontier, out / "frontier.csv")
    plot_pilot(result, out / "pilot.png", f"Pilot: {cfg.model}, {cfg.hook_name}")
    lines = recipe_lines(cfg, result.settings, result.look, Path(cfg.text or out / OWN_TEXT))
    text = recipe_text(lines, what_to_do(result))
    write_pilot_page(result, text, vars(cfg), out / "pilot.html")
    write_recipe(text, cfg.recipe_file)
