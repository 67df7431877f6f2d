"""The quickstart's stages, in their order. Each is skipped where its result lies already."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from experiments.pipeline.gate import GATE_FACTS, fit_gate_of
from experiments.pipeline.grpo import train_adaptive
from experiments.pipeline.joint import joint_settings, train_from
from experiments.pipeline.posterior import (
    QUALITY,
    SELECTED,
    SHARED,
    quality_of,
    right_share,
    scores_of,
    select_from,
    training_table,
)
from experiments.pipeline.prior import draw_pool
from experiments.pipeline.stage import cost_of, ids_of, run_stage
from experiments.pipeline.tasks import MULTI_HOP, at_most
from experiments.pipeline.warm_up import warm_up
from experiments.quickstart.judging import judge_in_parts, pooled_pairs
from experiments.quickstart.recipe import QuickstartRecipe
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas
from mmemb_r1.evaluation import Settings, load_results, run_evaluation, save_results
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.evaluation.settings import MODES
from mmemb_r1.model_card import write_model_card
from mmemb_r1.runs import replaced_file, write_json
from mmemb_r1.training.base_trainer import TRAINING_FILE

# Folders, in the order in which they are made.
WARM_UP, PRIOR, SCORES, POSTERIOR, JOINT, GATE, MODEL = (
    "warm-up",
    "rationales",
    "scores",
    "selection",
    "trained",
    "gate",
    "model",
)
TIMED = (WARM_UP, PRIOR, POSTERIOR, JOINT, GATE, MODEL)
EVALUATION, RESULTS_FILE = "evaluation", "results.json"


@dataclass(frozen=True)
class Quickstart:
    """
    One quickstart.

    Args:
        output: its folder.
        recipe: what to do.
        atlas: built already.
        console: where progress is told.
        jobs: processes that judge rationales.
    """

    output: Path
    recipe: QuickstartRecipe
    atlas: Atlas
    console: Console
    jobs: int

    def stage(
        self,
        name: str,
        facts: Mapping[str, Any],
        make: Callable[[Path], None],
        needs: Sequence[str] = (),
        checkpoints: Path | None = None,
    ) -> None:
        """
        Make the folder of a stage, unless it is there; and tell how long it took. `needs` are the stages that it is
        made of; `checkpoints` as in [`run_stage`].
        """
        made_of = ids_of({need: self.output / need for need in needs})
        made = run_stage(self.output / name, facts, make, made_of=made_of, checkpoints=checkpoints)
        cost = cost_of(self.output / name)
        self.tell(name, cost["seconds"] if made and cost else None)

    def tell(self, name: str, seconds: float | None) -> None:
        """How long something took; `None`: it is there already."""
        took = "is there already" if seconds is None else f"made in {seconds:.0f} s"
        self.console.print(f"{self.output / name}: {took}", highlight=False, soft_wrap=True)

    def checkpoints(self, name: str) -> Path:
        """Where a phase keeps what a killed run goes on from."""
        return self.output / "checkpoints" / name


def run_warm_up(run: Quickstart) -> None:
    """Names of pictures, and facts as text: what a pretrained backbone would bring along."""
    recipe, checkpoints = run.recipe.warm_up, run.checkpoints(WARM_UP)

    def make(folder: Path) -> None:
        warm_up(run.atlas, recipe, folder, checkpoints)

    run.stage(WARM_UP, asdict(recipe), make, checkpoints=checkpoints)


def run_prior(run: Quickstart) -> None:
    """What four workers say of the questions of several steps."""
    pairs, seed = pooled_pairs(run.atlas.pairs["train"]), run.recipe.warm_up.seed

    def make(folder: Path) -> None:
        rationales = draw_pool(run.atlas, pairs, folder, seed)
        run.console.print(f"{len(rationales)} rationales for {len(pairs)} pairs")

    run.stage(PRIOR, {"seed": seed}, make)


def run_posterior(run: Quickstart) -> None:
    """What of it helps its pair, in the judgement of the model that was warmed up."""

    def make(folder: Path) -> None:
        scores = run.output / SCORES
        judge_in_parts(run.atlas.directory, run.output / PRIOR, run.output / WARM_UP, scores, run.jobs)
        candidates = select_from(scores_of(scores), SHARED, folder / SELECTED)
        pairs = pooled_pairs(run.atlas.pairs["train"])
        write_json(folder / QUALITY, quality_of(candidates, pairs, MULTI_HOP))

    run.stage(POSTERIOR, asdict(SHARED), make, (WARM_UP, PRIOR))
    run.console.print(what_was_kept(run.output), highlight=False, soft_wrap=True)


def what_was_kept(output: Path) -> str:
    """A sentence on the selection, which can be checked because one of the four workers is known to help."""
    quality, selected = _read(output / POSTERIOR / QUALITY)["all"], output / POSTERIOR / SELECTED
    if (drawn := right_share(selected)) is None:
        return "no rationale was kept"
    number = pq.read_metadata(selected).num_rows
    return (
        f"{number} rationales kept: {quality['precision']:.0%} of them by the worker that helps (a quarter of all "
        f"are), and {quality['recall']:.0%} of that worker's; by the posterior, as they will be drawn, {drawn:.0%} "
        "are that worker's"
    )


def settings_of_joint(recipe: QuickstartRecipe) -> dict[str, Any]:
    """Fields of [`JointConfig`] for the joint phase."""
    return joint_settings(recipe.warm_up, **recipe.joint)


def run_joint(run: Quickstart) -> None:
    """Thinking and embedding together, on what was kept."""
    settings, checkpoints = settings_of_joint(run.recipe), run.checkpoints(JOINT)

    def make(folder: Path) -> None:
        pairs = run.atlas.pairs["train"]
        rationales = training_table(run.output / POSTERIOR / SELECTED, pairs, pooled=MULTI_HOP)
        train_from(run.output / WARM_UP, pairs, rationales, settings, folder, checkpoints)

    run.stage(JOINT, settings, make, (WARM_UP, POSTERIOR), checkpoints)


def run_gate(run: Quickstart) -> None:
    """The gate's warm start on the `policy` split, whose compositions the embedder never saw."""
    rows = run.recipe.rows_per_task

    def make(folder: Path) -> None:
        policy = at_most(run.atlas.pairs["policy"], rows)
        write_json(folder / GATE_FACTS, fit_gate_of(run.output / JOINT, policy, run.atlas.candidates, folder))

    run.stage(GATE, {"rows_per_task": rows}, make, (JOINT,))
    facts = _read(run.output / GATE / GATE_FACTS)
    run.console.print(
        f"thinking pays on {facts['pays']:.0%} of the policy split; the gate chooses it on {facts['thinks']:.0%}",
        highlight=False,
        soft_wrap=True,
    )


def run_grpo(run: Quickstart) -> None:
    """GRPO teaches gate and thoughts on the `policy` split."""
    recipe, pairs, checkpoints = run.recipe, run.atlas.pairs, run.checkpoints(MODEL)
    settings = {**recipe.grpo, "seed": recipe.warm_up.seed}

    def make(folder: Path) -> None:
        policy = at_most(pairs["policy"], recipe.rows_per_task)
        with warnings.catch_warnings():
            # Atlas's questions that are text alone are the same in all splits, and recall is what they ask for.
            warnings.filterwarnings("ignore", message=".* are among those of the joint phase")
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # of TRL; nothing to be done
            train_adaptive(run.output / GATE, policy, pairs["train"], settings, folder, checkpoints)
        told = {name: _read(run.output / name / TRAINING_FILE) for name in (WARM_UP, JOINT)}
        gate = _read(run.output / GATE / GATE_FACTS)
        facts = training_facts(told[WARM_UP], told[JOINT], gate, _read(folder / TRAINING_FILE))
        write_json(folder / TRAINING_FILE, facts)

    run.stage(MODEL, settings, make, (GATE,), checkpoints)


def training_facts(
    warm_up: Mapping[str, Any], joint: Mapping[str, Any], gate: Mapping[str, Any], grpo: Mapping[str, Any]
) -> dict[str, Any]:
    """What the card tells of the training: the joint phase in full, the others in a line each."""
    rest = ("phase", "started from weights", "seconds", "resumed from")
    return {
        "phases": "warm-up, joint phase, gate's warm start, GRPO",
        "before training": "random weights, nothing pretrained; what it can is what Atlas shows: a few hundred small "
        "pictures, facts of countries, no video",
        "warm-up": f"{warm_up['steps']} steps on names of pictures and facts as text, learning rate "
        f"{warm_up['learning rate']}",
        **{name: value for name, value in joint.items() if name not in rest},
        "rationales": f"{joint['rationales']} (own: Atlas's own thoughts of the tasks that no worker was asked about; "
        "these were not selected)",
        "gate's warm start": f"thinking pays on {gate['pays']:.1%} of policy, the gate chooses it on "
        f"{gate['thinks']:.1%}",
        "GRPO": f"{grpo['steps']} steps of {grpo['rollouts per step']} rollouts on {grpo['pairs']} pairs; rewards: "
        f"{grpo['reward weights']}; learning rate {grpo['learning rate']}; each step also trains on pairs of the "
        "joint phase",
    }


def measure(run: Quickstart) -> Results:
    """
    Evaluate on the test split, and write the reports and the card.

    Raises:
        ValueError: if the results that are there are of other stages than those that are there.
    """
    results_file, checkpoint, folder = run.output / RESULTS_FILE, run.output / MODEL, run.output / EVALUATION
    stages = {name: cost_of(run.output / name) for name in TIMED}
    if results_file.exists():
        results = load_results(results_file)
        if results["config"].get("stages") != stages:
            raise ValueError(
                f"{results_file} is of stages that were made anew since. Remove it and {folder} to have it made anew."
            )
        run.tell(RESULTS_FILE, None)
        return results
    start = time.perf_counter()
    training, pairs = _read(checkpoint / TRAINING_FILE), run.atlas.pairs
    config = {
        "model": "quickstart",
        "dataset": "Atlas",
        "split": "test",
        "seed": run.recipe.warm_up.seed,
        "training": training,
        "stages": stages,
    }
    results = run_evaluation(
        MMEmbR1(str(checkpoint), device="cpu"),
        atlas_tasks(pairs["test"], run.atlas.candidates, train_pairs=pairs["train"]),
        Settings(modes=MODES, batch_size=128, no_image=True, rationales=True),
        config=config,
        output=folder,
    )
    with replaced_file(results_file) as temporary:
        save_results(results, temporary)
        write_model_card(checkpoint, results=temporary, training=training)
    run.tell(EVALUATION, time.perf_counter() - start)
    return load_results(results_file)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
