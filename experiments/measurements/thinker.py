"""
What is a thinker worth that is not the embedder? Three small embedders on Atlas, before a rationale, after one of
their own, and after one of a chat server whose rationales are known.

    python -m experiments.measurements.thinker [--output runs/thinker] [--models ours converted random]

- *ours*: trained from random weights for 600 steps on questions, pictures' names and facts, with rationales.
- *converted*: in the layout of Qwen3-VL-Embedding, converted, and trained for 400 steps on pairs without rationales:
  pictures' names, questions of one step, and sentences with what they state ("The capital of Peru is Lima."), these of
  other countries than are asked about: an embedder of pictures and texts that never learnt to think.
- *random*: the same, not trained at all.

The server knows the right rationale of every question, sees nothing but text and picture of a request, and gives
that, or another country's (`wrong`). Two groups of questions of the test split: *flags* (two steps: which flag, then
its fact), about countries that no such question was trained on, and *facts* (one step, as text). Printed is R@1 with
its 95 % interval, clustered by country. For `auto`, a gate is fitted to the thinker on the `policy` split.

What is made already is not made again. On two cores that do nothing else it takes about half an hour.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from rich.console import Console
from rich.table import Table

from experiments.pipeline.joint import finish, joint_settings, joint_trainer, train_from_nothing
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.tasks import FLAGS, of_tasks
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas, atlas_texts, build_atlas
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation import Settings, run_evaluation
from mmemb_r1.evaluation.atlas_tasks import read_atlas_tasks
from mmemb_r1.modeling.media_mmemb_r1 import open_image
from mmemb_r1.recipes import convert
from mmemb_r1.runs import made_whole, write_json
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training import GateConfig, train_gate

FACTS = tuple(f"fact-{relation}" for relation in ("capital", "region", "currency", "language", "tld"))
GROUPS = {"flags": FLAGS, "facts": FACTS}
TASK_WEIGHTS = {"picture-name-flag": 25.0, **dict.fromkeys(FLAGS, 9.0), **dict.fromkeys(FACTS, 6.0)}
SMALL = {
    "vocab_size": 3000,
    "backbone": {
        "hidden_size": 128, "num_layers": 3, "num_heads": 4, "vision_hidden_size": 96, "vision_layers": 2,
        "image_size": 64,
    },
}  # fmt: skip
TRAINING = {"learning_rate": 1e-3, "disable_tqdm": True}
BUDGET = 64  # tokens of a rationale
MODELS = ("ours", "converted", "random")
STEPS = (600, 400)  # of ours, and of converted
STATEMENTS = "statements"  # a task of the converted embedder's training
DIRECT_WEIGHTS = {"picture-name-flag": 15.0, STATEMENTS: 45.0, **dict.fromkeys(FACTS, 8.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/thinker"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, nargs=2, default=STEPS, help="of ours, and of converted")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    atlas = build_atlas(args.output / "atlas", num_objects=40, num_countries=80)
    for name in args.models:
        folder = make_model(name, atlas, args.output, args.steps)
        with known_server(atlas) as right, known_server(atlas, shift=1) as wrong:
            found = measured(folder, atlas, args.output, {"right": right, "wrong": wrong})
        write_json(args.output / f"{name}.json", found)
        show(name, found)


def make_model(name: str, atlas: Atlas, output: Path, steps: Sequence[int]) -> Path:
    """Make one of the three embedders, and return its folder."""
    recipe = Recipe(model={"max_reasoning_tokens": BUDGET}, **SMALL)

    def ours(folder: Path) -> None:
        settings = {"max_steps": steps[0], "task_weights": TASK_WEIGHTS, **TRAINING}
        train_from_nothing(atlas, recipe, folder, output / "checkpoints-ours", **settings)

    def random(folder: Path) -> None:
        vlm, processor = build_tiny_vlm(
            "qwen3_vl", texts=atlas_texts(atlas), vocab_size=recipe.vocab_size, seed=recipe.seed, **recipe.backbone
        )
        vlm.save_pretrained(output / "published")
        processor.save_pretrained(output / "published")
        convert(str(output / "published"), "qwen3-vl-embedding", max_reasoning_tokens=BUDGET).save(folder)

    def converted(folder: Path) -> None:
        made_whole(output / "random", random)
        model = MMEmbR1(str(output / "random"), device="cpu")
        settings = joint_settings(
            recipe, max_steps=steps[1], task_weights=DIRECT_WEIGHTS, use_rationales=False, **TRAINING
        )
        pairs = with_statements(atlas.pairs["train"])
        finish(
            joint_trainer(model[0].model, model.processor, pairs, settings, output / "checkpoints-converted"), folder
        )

    made_whole(output / name, {"ours": ours, "random": random, "converted": converted}[name])
    return output / name


def with_statements(pairs: datasets.Dataset) -> datasets.Dataset:
    """Add pairs of a sentence and what it states: the last one of each question about a flag, and its answer."""
    asked = of_tasks(pairs, set(FLAGS))
    stated = [
        {
            **row,
            "pair_id": f"{STATEMENTS}/{row['pair_id']}",
            "task": STATEMENTS,
            "query": {**row["query"], "text": row["query_rationale"][-1], "image": []},
        }
        for row in asked.to_list()
    ]
    return datasets.concatenate_datasets([pairs, datasets.Dataset.from_list(stated, features=pairs.features)])


@contextlib.contextmanager
def known_server(atlas: Atlas, shift: int = 0) -> Iterator[str]:
    """
    Serve the rationales of Atlas's questions as a chat endpoint on loopback, and yield its address; with a `shift`,
    each question gets that of another country's question of its task.
    """
    from tests.chat_server import Reply, Server

    known: dict[bytes, str] = {}
    for split in ("policy", "test"):
        for task in (*FLAGS, *FACTS):
            pairs = of_tasks(atlas.pairs[split], {task})
            texts = [" ".join(sentences) for sentences in pairs["query_rationale"]]
            for row, value in enumerate(inputs_of(pairs["query"])):
                pictures = [open_image(picture) for picture in value.get("image", [])]
                known[question_key(value["text"], pictures)] = texts[(row + shift) % len(texts)]

    def reply(body: dict[str, Any], number: int) -> Any:
        text = known.get(question_key(*asked(body["messages"][1]["content"])))
        return Reply(text) if text else Reply("This question is not of Atlas.", status=400)

    server = Server()
    server.reply = reply
    try:
        yield server.url
    finally:
        server.close()


def asked(content: Any) -> tuple[str, list[Image.Image]]:
    """Read text and pictures of a request's user turn."""
    if isinstance(content, str):
        return content, []
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls]
    return "".join(part["text"] for part in content if part["type"] == "text"), pictures


def question_key(text: str, pictures: list[Image.Image]) -> bytes:
    digest = blake2b(text.encode(), digest_size=16)
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return digest.digest()


def thinker_of(name: str, address: str) -> dict[str, Any]:
    return {"kind": "openai", "model": name, "base_url": address}  # vectors are kept by the model's name


def measured(folder: Path, atlas: Atlas, output: Path, servers: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Evaluate one embedder: way of thinking -> group of questions -> R@1, its interval, and the invocation rate."""
    model = MMEmbR1(str(folder), device="cpu")
    model.embedding_cache = output / "cache"
    found = {"never": scores(model, output, "never"), "its own thoughts": scores(model, output, "always")}
    for form in ("tokens", "text"):
        for name, address in servers.items():
            model.set_thinker(thinker_of(name, address), form)
            found[f"{name} thinker, as {form}"] = scores(model, output, "always")
    model.set_thinker(thinker_of("right", servers["right"]))  # in the form that its config says
    policy = of_tasks(atlas.pairs["policy"], {*FLAGS, *FACTS})
    gate = train_gate(model, policy, GateConfig(holdout=0.0), atlas.candidates, progress=False)
    found["right thinker, as the gate decides"] = {**scores(model, output, "auto"), "gate": gate["measured"]}
    return found


def scores(model: MMEmbR1, output: Path, mode: str) -> dict[str, Any]:
    """Evaluate a model in one mode: group of questions -> the means over its tasks."""
    settings = Settings(modes=(mode,), batch_size=64)
    found = {}
    for group, tasks in GROUPS.items():
        source = read_atlas_tasks(output / "atlas", names=tasks)
        summary = run_evaluation(model, source, settings, progress=False)["summary"]["all"]
        told = ("score", "interval", "invocation_ratio", "mean_reasoning_tokens")
        found[group] = {"queries": summary["n"], **{name: summary["modes"][mode][name] for name in told}}
    return found


def show(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Print the table of one embedder."""
    table = Table(name, *(f"R@1, {group}" for group in GROUPS), *(f"thinks, {group}" for group in GROUPS))
    for way, groups in found.items():
        numbers = [groups[group] for group in GROUPS]
        scored = [f"{one['score']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}]" for one in numbers]
        table.add_row(way, *scored, *(f"{one['invocation_ratio']:.0%}" for one in numbers))
    Console(width=132).print(table)


if __name__ == "__main__":
    main()
