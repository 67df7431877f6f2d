"""Stand-ins of the public models and data that docs/from-a-public-model.md names: their files and layouts in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

EMBEDDER, EVALUATOR = "Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-4B-Instruct"
TASKS = ("A-OKVQA", "CIRR", "ImageNet_1K")
PAIRS, POLICY_PAIRS = 48, 40  # of the supervised data, of which one lacks its picture; of the data for GRPO
_ASKED = (  # after each input of UME-R1's supervised data
    "\n<disc_emb>\nRepresent the above input text, images, videos, or any combination of the three as embeddings. "
    "\nFirst output the thinking process in <think> </think> tags and then summarize the entire input in a word or "
    "sentence. \nFinally, use the <gen_emb> tag to represent the entire input."
)
_POOLS = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def write_models(folder: Path) -> None:
    """Write tiny random models of the classes of the embedder and of the evaluator, under their names."""
    import torch

    from mmemb_r1.tiny import build_tiny_vlm

    for seed, name in enumerate((EMBEDDER, EVALUATOR)):
        vlm, processor = build_tiny_vlm("qwen3_vl", seed=seed)
        with torch.no_grad():
            for weight in vlm.parameters():
                if weight.ndim > 1:
                    weight.mul_(6)  # states that depend strongly on what is read
        vlm.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    (folder / EMBEDDER / "modules.json").write_text(json.dumps(_POOLS), encoding="utf-8")


def write_public_data(folder: Path) -> None:
    """Write UME-R1's two data sets and the pictures of MMEB-train, as they lie after the page's downloads."""
    media = folder / "MMEB-train"
    (media / "images").mkdir(parents=True)
    (media / "unzip_file.py").write_text('"""The pictures are here already."""\n', encoding="utf-8")
    for number in range(PAIRS + POLICY_PAIRS):
        if number != PAIRS - 1:
            picture = Image.new("RGB", (64, 64), (3 * number % 256, 7 * number % 256, 90))
            picture.save(media / "images" / f"{number}.jpg")
    supervised = [
        {
            "qry": _side(f"<image>\nWhat is number {number}?", f"I see\nnumber {number}.", f"number {number}", number),
            "pos": _side(f"thing {number}", "A word.", f"thing {number}"),
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


def _side(text: str, thought: str, answer: str, picture: int | None = None) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": text + _ASKED},
        {"from": "gpt", "value": f"<think>{thought}</think><answer>{answer}<gen_emb>"},
    ]
    return {"conversations": turns, "image": "images/blank.jpg" if picture is None else f"images/{picture}.jpg"}


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
