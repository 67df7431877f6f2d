"""Show what the quickstart's model does: a picture, where everything is, and lines to paste."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas, load_atlas
from mmemb_r1.content import given_parts
from mmemb_r1.evaluation.atlas_tasks import embed_candidates
from mmemb_r1.evaluation.report import HTML_FILE
from mmemb_r1.evaluation.run_folder import load_results

FLAGS = ("flag-capital", "flag-currency", "flag-tld")
TASKS = (*FLAGS, "picture-name-object", "neighbour-capital", "compare-area", "digits-sum")
TOP = 5
RIGHT, WRONG = "#1a7f37", "#57606a"


def draw_showcase(model: MMEmbR1, atlas: Atlas, path: Path, tasks: Sequence[str] = TASKS, per_task: int = 1) -> None:
    """
    Draw queries of the test split with their best answers, before and after thinking, with the rationales.

    Args:
        model: the model.
        atlas: the benchmark.
        path: of the PNG.
        tasks: tasks to draw from; those without test queries are left out.
        per_task: queries per task, at places of the split that differ from task to task; none is picked by its result.
    """
    from matplotlib.figure import Figure  # of the atlas extra

    pairs: Any = atlas.pairs["test"]
    names = np.array(pairs["task"])
    rows = [row for place, task in enumerate(tasks) for row in _spread(np.flatnonzero(names == task), place, per_task)]
    figure = Figure(figsize=(13, 1.75 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1.1, 2.2, 2.2))
    sets = embed_candidates(model, atlas.candidates, {pairs[row]["candidate_set"] for row in rows})
    for row, axes in zip(rows, grid, strict=True):
        pair = pairs[row]
        _draw_query(axes[0], pair)
        answers = sets[pair["candidate_set"]]
        ids = list(answers.rows)
        for axis, mode in zip(axes[1:], ("never", "always"), strict=True):
            said: Any = model.explain(given_parts(pair["query"]), reasoning=mode)
            scores = answers.embeddings @ said["embedding"]  # (C,)
            best = np.argsort(-scores, kind="stable")[:TOP]
            title = f"direct, gate {said['gate_prob']:.2f}" if mode == "never" else f"“{said['rationale']}”"
            _draw_answers(axis, title, [ids[place] for place in best.tolist()], scores[best], pair["target_id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _spread(rows: np.ndarray, place: int, number: int) -> list[int]:
    """`number` of the rows, beginning somewhere else for each `place`: the same countries come first in every task."""
    return [int(rows[(7 * place + 13 * step + 5) % len(rows)]) for step in range(number if len(rows) else 0)]


def _draw_query(axis: Any, pair: dict[str, Any]) -> None:
    pictures = [np.asarray(picture.convert("RGB")) for picture in pair["query"]["image"]]
    if pictures:
        gap = np.full((pictures[0].shape[0], 6, 3), 255, dtype=np.uint8)
        strip = [part for picture in pictures for part in (picture, gap)][:-1]
        axis.imshow(np.concatenate(strip, axis=1))
    axis.set_title(f"{pair['task']}\n{pair['query']['text']}", fontsize=9)
    axis.axis("off")


def _draw_answers(axis: Any, title: str, ids: list[str], scores: np.ndarray, target: str) -> None:
    places = np.arange(len(ids))
    axis.barh(places, scores, color=[RIGHT if name == target else "#d0d7de" for name in ids])
    for place, name in zip(places, ids, strict=True):
        axis.text(0.01, place, name, va="center", fontsize=9, color="white" if name == target else WRONG)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)
    axis.set_title(_wrapped(title), fontsize=8)


def _wrapped(text: str, width: int = 74) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])


def save_example(atlas: Atlas, path: Path) -> Path:
    """Save the flag of a country of the test split, for the lines to paste."""
    pairs = atlas.pairs["test"]
    (row,) = _spread(np.flatnonzero(np.array(pairs["task"]) == "flag-capital"), 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs[row]["query"]["image"][0].save(path)
    return path


def lines_to_paste(checkpoint: Path, picture: Path) -> str:
    """Three lines of Python that use the checkpoint."""
    query = f'{{"image": "{picture}", "text": "capital of this country?"}}'
    return (
        "from mmemb_r1 import MMEmbR1\n"
        f'model = MMEmbR1("{checkpoint}")\n'
        f'print(model.explain({query}, reasoning="always")["rationale"])'
    )


def main() -> None:
    """Draw the picture of a finished quickstart, and say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    folder = parser.parse_args().quickstart
    atlas, checkpoint = load_atlas(folder / "atlas"), folder / "model"
    picture, example = folder / "showcase.png", folder / "flag.png"
    measured = load_results(folder / "evaluation" / "results.json")["tasks"]
    draw_showcase(MMEmbR1(str(checkpoint), device="cpu"), atlas, picture, [task for task in TASKS if task in measured])
    save_example(atlas, example)
    shown = {
        "queries, answers and rationales": picture,
        "report": folder / "evaluation" / HTML_FILE,
        "results": folder / "evaluation" / "results.json",
        "card": checkpoint / "README.md",
    }
    for what, path in shown.items():
        if path.exists():  # without what draws there is no report
            print(f"{what}: {path}")
    print(f"\nTry it:\n\n{lines_to_paste(checkpoint, example)}")


if __name__ == "__main__":
    main()
