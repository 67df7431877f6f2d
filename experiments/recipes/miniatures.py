"""Stand-ins of the public models and data that docs/from-a-public-model.md names: their files and layouts in small."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

EMBEDDER, EVALUATOR = "Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-4B-Instruct"
TASKS = ("A-OKVQA", "CIRR", "ImageNet_1K")
PAIRS, POLICY_PAIRS = 48, 40  # of the supervised data, of which one lacks its picture; of the data for GRPO


def write_models(folder: Path) -> None:
    """Write tiny random models of the classes of the embedder and of the evaluator, under their names."""
    from tests.recipes.conftest import build, randomised

    from mmemb_r1.tiny import build_tiny_vlm

    (folder / EMBEDDER).parent.mkdir(parents=True)
    build("qwen3-vl-embedding", (folder / EMBEDDER).parent, None)
    vlm, processor = build_tiny_vlm("qwen3_vl", seed=1)
    randomised(vlm, seed=1).save_pretrained(folder / EVALUATOR)
    processor.save_pretrained(folder / EVALUATOR)


def write_public_data(folder: Path) -> None:
    """Write UME-R1's two data sets and the pictures of MMEB-train, as they lie after the page's downloads."""
    from tests.training.importing.conftest import chat

    media = folder / "MMEB-train"
    (media / "images").mkdir(parents=True)
    (media / "unzip_file.py").write_text('"""The pictures are here already."""\n', encoding="utf-8")
    for number in range(PAIRS + POLICY_PAIRS):
        if number != PAIRS - 1:
            picture = Image.new("RGB", (64, 64), (3 * number % 256, 7 * number % 256, 90))
            picture.save(media / "images" / f"{number}.jpg")
    supervised = [
        {
            "qry": chat(
                f"<image>\nWhat is number {number}?",
                f"I see\nnumber {number}.",
                f"number {number}",
                image=f"images/{number}.jpg",
            ),
            "pos": chat(f"thing {number}", "A word.", f"thing {number}", image="images/blank.jpg"),
            "dataset_name": TASKS[number % len(TASKS)],
        }
        for number in range(PAIRS)
    ]
    policy = [
        {
            "qry_text": f"<image>\nWhich is {number}?",
            "qry_image": f"images/{number}.jpg",
            "qry_video": [""],
            "pos_text": f"thing {number}",
            "pos_image": "",
            "pos_video": [""],
            "solution": "",
        }
        for number in range(PAIRS, PAIRS + POLICY_PAIRS)
    ]
    for name, rows in (("UME-sft-train", supervised), ("UME-rl-train", policy)):
        (folder / name).mkdir()
        (folder / name / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_mmeb(folder: Path) -> None:
    """Write all 78 tasks of MMEB-V2, each with three queries (MVBench with one per part)."""
    from tests.mmeb_copy import Copy, image_rows, mvbench, video_rows, visdoc

    from mmemb_r1.evaluation.mmeb import TASKS as BENCHMARK

    copy = Copy(folder)
    for name, task in BENCHMARK.items():
        if task.layout == "mvbench":
            mvbench(task, copy)
        elif task.modality == "visdoc":
            visdoc(task, copy)
        else:
            copy.rows(name, image_rows(task, copy) if task.modality == "image" else video_rows(task, copy))


def count_as_miniature() -> None:
    """From here on in this process, a task of MMEB-V2 is complete with the queries of its miniature."""
    from mmemb_r1.evaluation.mmeb.catalogue import MVBENCH, TASKS

    for task in TASKS.values():
        queries = len(MVBENCH) if task.layout == "mvbench" else 3
        for name, value in (("num_queries", queries), ("first_rows", False)):
            object.__setattr__(task, name, value)  # frozen, and shared by all that read the catalogue
