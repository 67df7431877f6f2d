"""Each public layout, in miniature, gives the expected pairs and rationales."""

from __future__ import annotations

import io
import json
import re
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.training.importing.conftest import chat, picture

from mmemb_r1.cli import main
from mmemb_r1.tables.pairs import HubTable
from mmemb_r1.training.importing.run import import_pairs
from mmemb_r1.training.joint.data import SelectedRationales
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.select import select_rationales
from mmemb_r1.training.tables import PAIR_COLUMNS, StoredInputs, check_pairs, read_pairs


def inputs(output, column="query"):
    return list(StoredInputs(read_pairs(output / "pairs", PAIR_COLUMNS), column))


def thoughts(output):
    """(side, text) of each rationale, by pair."""
    ids = read_pairs(output / "pairs")["pair_id"][:]
    rows = read_rationales(output / "rationales").to_list()
    return [{row["side"]: row["text"] for row in rows if row["pair_id"] == pair_id} for pair_id in ids]


UME_ROWS = [
    {
        "qry": chat("<image>\nWhat is it?", "It is\nred.", "A red\nflag.", image="images/0.jpg"),
        "pos": chat("A flag.", "A word.", "flag", image=["images/blank.jpg"]),
        "dataset_name": "A-OKVQA",
    },
    {
        "qry": chat("<video>\nWhat happens?", "It moves.", "moving", video=["frames/v/0.jpg", "frames/v/9.jpg"]),
        "pos": chat("It <image> and <image> go.", "Two.", "two", image=["images/1.jpg", "images/2.jpg"]),
        "dataset_name": "video_qa",
    },
]


@pytest.mark.parametrize("name", ["UME-sft-train.json", "UME-sft-train.jsonl"])
def test_supervised_data_of_ume_r1(name, tmp_path, media, write_json):
    source, output = write_json(tmp_path / "data" / name, UME_ROWS), tmp_path / "out"
    summary = import_pairs("ume-r1", source, output, media=media)
    assert inputs(output) == [
        {"text": "What is it?", "image": [str(media / "images/0.jpg")]},
        {"text": "What happens?", "video": [str(media / f"frames/v/{frame}.jpg") for frame in (0, 9)]},
    ]
    assert inputs(output, "target") == [
        {"text": "A flag."},
        {"text": "It and go.", "image": [str(media / "images/1.jpg"), str(media / "images/2.jpg")]},
    ]
    assert thoughts(output) == [
        {"query": "It is\nred.\nA red flag.", "target": "A word.\nflag"},
        {"query": "It moves.\nmoving", "target": "Two.\ntwo"},
    ]
    rationales = read_rationales(output / "rationales")
    assert set(rationales["worker"]) == {"ume-r1"}
    assert read_pairs(output / "pairs")["task"][:] == ["A-OKVQA", "video_qa"]
    assert (summary.total.read, summary.total.written, summary.total.rationales) == (2, 2, 4)
    assert json.loads((output / "summary.json").read_text())["tasks"]["video_qa"]["written"] == 1
    check_pairs(read_pairs(output / "pairs"), PAIR_COLUMNS)
    assert SelectedRationales(read_pairs(output / "rationales" / "shards")).covered(read_pairs(output / "pairs")) == 2


def test_answers_apart_or_dropped(tmp_path, media, write_json):
    source = write_json(tmp_path / "a.json", UME_ROWS)
    import_pairs("ume-r1", source, tmp_path / "apart", media=media, answers="apart")
    selected = SelectedRationales(read_pairs(tmp_path / "apart" / "rationales" / "shards"))
    pair_id = read_pairs(tmp_path / "apart" / "pairs")["pair_id"][0]
    assert selected.draw(pair_id, "query", np.random.default_rng(0)).segments == (
        "It is\nred.",
        "A red\nflag.",
    )
    import_pairs("ume-r1", source, tmp_path / "drop", media=media, answers="drop")
    assert thoughts(tmp_path / "drop")[0] == {"query": "It is\nred.", "target": "A word."}
    assert read_pairs(tmp_path / "drop" / "pairs")["pair_id"][0] == pair_id
    with pytest.raises(ValueError, match="answers='keep'; allowed: 'join', 'apart', 'drop'"):
        import_pairs("ume-r1", source, tmp_path / "keep", media=media, answers="keep")


def test_rationales_of_the_public_are_selected_by_the_pair(tmp_path, media, write_json, guesses):
    table = [
        {"qry": chat(f"q {row}", f"Think {row}.", f"{row}"), "pos": chat(f"p {row}", f"See {row}.")}
        for row in range(9)
    ]
    source = write_json(tmp_path / "a.json", table)
    import_pairs("ume-r1", source, tmp_path / "out", shard_size=4, answers="apart")
    pairs, rationales = read_pairs(tmp_path / "out" / "pairs"), read_rationales(tmp_path / "out" / "rationales")
    report = select_rationales(pairs, rationales, guesses, tmp_path / "selection", SelectionOptions(num_negatives=2))
    assert report["rows"]["rows"] == 18
    kept = read_pairs(tmp_path / "selection" / "selected.parquet")
    assert 0 < len(kept) < 18
    of = dict(zip(pairs["pair_id"], pairs["query"], strict=True))
    for row in kept:
        number = of[row["pair_id"]]["text"][2:]
        assert row["segments"] == {"query": [f"Think {number}.", number], "target": [f"See {number}."]}[row["side"]]
    assert SelectedRationales(kept).workers == {"ume-r1": len(kept)}


def test_a_thought_that_was_cut_off_is_told_as_such(tmp_path, write_json):
    row = {"qry": chat("a"), "pos": chat("b")}
    row["qry"]["conversations"].append({"from": "gpt", "value": "<think>It is r"})
    import_pairs("ume-r1", write_json(tmp_path / "T.json", [row]), tmp_path / "out")
    assert read_rationales(tmp_path / "out" / "rationales")["finish_reason"][:] == ["length"]


RL_ROW = {
    "qry_text": "<image>\nWhich?",
    "qry_image": "images/0.jpg",
    "pos_text": "",
    "pos_video": ["frames/v/1.jpg"],
    "solution": "<answer>A</answer>",
}


@pytest.mark.parametrize(
    ("name", "extra", "task"),
    [
        ("ume-r1", {}, "UME-rl-train"),
        ("rime", {"dataset": "VisDial"}, "VisDial"),
        ("twn", {"source_dataset": "CIRR", "data_index": 3, "modality": "image", "target_hash": "x"}, "CIRR"),
    ],
)
def test_reinforcement_data(name, extra, task, tmp_path, media, write_json):
    blank = {"qry_video": [""], "pos_image": ""}
    source = write_json(tmp_path / "UME-rl-train.json", [{**RL_ROW, **blank, **extra}])
    import_pairs(name, source, tmp_path / "out", media=media)
    assert inputs(tmp_path / "out") == [{"text": "Which?", "image": [str(media / "images/0.jpg")]}]
    assert inputs(tmp_path / "out", "target") == [{"video": [str(media / "frames/v/1.jpg")]}]
    assert read_pairs(tmp_path / "out" / "pairs")["task"][:] == [task]
    assert not (tmp_path / "out" / "rationales").exists()


def test_a_folder_of_tasks_with_negatives(tmp_path, media, write_json):
    """RIME and TWN have one file for each task, and reinforcement data beside them."""
    row = {"qry": chat("q", "t", "a"), "pos": chat("p"), "neg": [chat("n", image="images/3.jpg"), chat("m")]}
    for task in ("A-OKVQA", "CIRR"):
        write_json(tmp_path / "TWN" / "sft" / f"{task}.json", [row])
    write_json(tmp_path / "TWN" / "rl" / "rl.json", [{**RL_ROW, "source_dataset": "CIRR"}])
    import_pairs("twn", tmp_path / "TWN", tmp_path / "out", media=media)
    assert read_pairs(tmp_path / "out" / "pairs")["task"][:] == ["CIRR", "A-OKVQA", "CIRR"]
    negatives = read_pairs(tmp_path / "out" / "pairs")["negatives"][:]
    assert [[one["text"] for one in own] for own in negatives] == [[], ["n", "m"], ["n", "m"]]
    assert negatives[1][0]["image"] == [str(media / "images/3.jpg")]
    import_pairs("twn", tmp_path / "TWN", tmp_path / "sft", media=media, files="sft/*", tasks=["CIRR"])
    assert read_pairs(tmp_path / "sft" / "pairs")["task"][:] == ["CIRR"]


MMEB_ROW = {
    "qry": "<|image_1|>\nRepresent the given image for classification\n",
    "qry_image_path": "images/0.jpg",
    "pos_text": "a flag",
    "pos_image_path": "",
    "neg_text": "",
    "neg_image_path": "",
}


def test_embed_rl(tmp_path, media, write_json):
    cot = "<thinking>Red.</thinking><rethink>A flag.</rethink><answer>flag</answer>"
    vidore = {**MMEB_ROW, "qry": "Align the question with <|image_1|> for representation: How many?"}
    write_json(
        tmp_path / "data" / "ImageNet_1K.json",
        [{**MMEB_ROW, "neg_text": "a house", "query_cot": cot, "pos_cot": "A cloth.", "error": ""}],
    )
    write_json(tmp_path / "data" / "vidore_samples_0.json", [{**vidore, "query_cot": "", "pos_cot": ""}])
    turns = [{"from": "human", "value": "<video>\nDescribe it."}, {"from": "gpt", "value": ""}]
    caption = [{"from": "human", "value": ""}, {"from": "gpt", "value": "A dog runs."}]
    video = {"conversations": turns, "video": ["frames/v/0.jpg", "frames/v/1.jpg"]}
    text = {"conversations": caption, "video": ["images/blank.jpg"]}
    rows = [
        {"qry": video, "pos": text, "query_cot": "It runs.", "dataset_name": "llavahound_caption_retrieval"},
        {"qry": text, "pos": video, "query_cot": "Run.", "dataset_name": "llavahound_video_retrieval"},
    ]
    write_json(tmp_path / "data" / "llavahound_0.json", rows)
    import_pairs("embed-rl", tmp_path / "data", tmp_path / "out", media=media)
    frames = [str(media / f"frames/v/{frame}.jpg") for frame in (0, 1)]
    image = [str(media / "images/0.jpg")]
    assert inputs(tmp_path / "out") == [
        {"text": "Represent the given image for classification", "image": image},
        {"text": "Describe it.", "video": frames},
        {"text": "A dog runs."},
        {"text": "How many?", "image": image},
    ]
    assert inputs(tmp_path / "out", "target") == [
        {"text": "a flag"},
        {"text": "A dog runs."},
        {"text": "Describe it.", "video": frames},
        {"text": "a flag"},
    ]
    assert thoughts(tmp_path / "out") == [
        {"query": "Red.\nA flag.\nflag", "target": "A cloth."},
        {"query": "It runs."},
        {"query": "Run."},
        {},
    ]
    assert [one["text"] for one in read_pairs(tmp_path / "out" / "pairs")["negatives"][0]] == ["a house"]


def test_mmeb_train_in_both_splits(tmp_path, media):
    other = {**MMEB_ROW, "qry": "<|image_1|>\nWhat is it?", "neg_text": ["x", "y"], "neg_image_path": ""}
    for name, row in (("original", MMEB_ROW), ("diverse_instruction", {**MMEB_ROW, "qry": "<|image_1|>\nName it."})):
        (tmp_path / "MMEB" / "ImageNet_1K").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "MMEB" / "ImageNet_1K" / f"{name}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    (tmp_path / "MMEB" / "CIRR").mkdir()
    pq.write_table(pa.Table.from_pylist([other]), tmp_path / "MMEB" / "CIRR" / "original-00000-of-00001.parquet")
    import_pairs("mmeb-train", tmp_path / "MMEB", tmp_path / "out", media=media)
    assert read_pairs(tmp_path / "out" / "pairs")["task"][:] == ["CIRR", "ImageNet_1K", "ImageNet_1K"]
    assert [one["text"] for one in inputs(tmp_path / "out")][1:] == [
        "Name it.",
        "Represent the given image for classification",
    ]
    assert [one["text"] for one in read_pairs(tmp_path / "out" / "pairs")["negatives"][0]] == ["x", "y"]
    import_pairs("mmeb-train", tmp_path / "MMEB", tmp_path / "one", media=media, files="*original*")
    assert len(read_pairs(tmp_path / "one" / "pairs")) == 2


def jpeg(shade):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def test_pages_that_come_as_bytes_become_files_which_move_with_the_tables(tmp_path):
    page, other = ({"bytes": jpeg(shade), "path": f"{shade}.jpg"} for shade in (0, 99))
    rest = {"source": "arxiv_qa", "image_filename": "a", "options": "", "page": "", "model": "", "prompt": "long"}
    rows = [{"image": one, "query": query, "answer": "yes", **rest} for one, query in ((page, "a?"), (page, "b?"))]
    (tmp_path / "colpali" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "colpali" / "data" / "train-00000-of-00082.parquet")
    import_pairs("vidore", tmp_path / "colpali", tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    (first, second), target = inputs(tmp_path / "moved"), inputs(tmp_path / "moved", "target")
    assert first["image"] == second["image"]
    assert first["text"] == "a?"
    assert target == [{"text": "yes"}, {"text": "yes"}]
    with open(first["image"][0], "rb") as file:
        assert file.read() == page["bytes"]
    assert len(list((tmp_path / "moved" / "media").rglob("*.jpg"))) == 1

    visrag = [{"query": "c?", "image": other, "source": "ChartQA"}]
    pq.write_table(pa.Table.from_pylist(visrag), tmp_path / "train-00000-of-00001.parquet")
    import_pairs("visrag", tmp_path / "train-00000-of-00001.parquet", tmp_path / "visrag")
    assert inputs(tmp_path / "visrag") == [{"text": "c?"}]
    assert set(inputs(tmp_path / "visrag", "target")[0]) == {"image"}
    assert read_pairs(tmp_path / "visrag" / "pairs")["task"][:] == ["ChartQA"]


def test_llava_hound_takes_frames_evenly(tmp_path, media, write_json):
    turns = [{"from": "human", "value": "<video>\nWhat runs?"}, {"from": "gpt", "value": "A dog."}]
    row = {"id": "v_0", "conversations": turns, "video": "v"}
    for name in ("video_caption_300k.jsonl", "video_240k_caption_15k.jsonl"):
        write_json(tmp_path / "sft" / name, [row])
    import_pairs("llava-hound", tmp_path / "sft", tmp_path / "out", media=media / "frames")
    frames = {"video": [str(media / f"frames/v/{frame}.jpg") for frame in (0, 1, 2, 3, 5, 6, 7, 8)]}
    question = {"text": "What runs?", **frames}
    assert inputs(tmp_path / "out") == [question, question, {"text": "A dog."}]
    assert inputs(tmp_path / "out", "target") == [{"text": "A dog."}, {"text": "A dog."}, frames]
    assert read_pairs(tmp_path / "out" / "pairs")["task"][:] == ["video-qa", "video-to-caption", "caption-to-video"]


ROWS = [
    {"question": "What?", "picture": "0.jpg", "answer": "red", "cot": "Look."},
    {"question": "Who?", "picture": "1.jpg", "answer": "blue", "cot": "See."},
]
COLUMNS = {"query.text": "question", "query.image": "picture", "target": "answer", "query_rationale": "cot"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder", "hub", "own"])
def test_files_of_ones_own(kind, tmp_path, media, write_json, monkeypatch):
    folder, columns = tmp_path / "mine", COLUMNS
    shutil.copytree(media / "images", folder)
    source, name = folder / f"rows.{kind}", kind
    if kind in ("jsonl", "json"):
        source, name = write_json(source, ROWS), "jsonl"
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), source)
    elif kind == "hub":
        source = "org/name:config/train"
        fake_hub(source, folder, monkeypatch)
    elif kind == "own":
        source, name, columns = write_json(folder / "rows.jsonl", ROWS), "import_format:convert", None
        (tmp_path / "import_format.py").write_text(
            "def convert(row):\n"
            "    query = {'text': row['question'], 'image': row['picture']}\n"
            "    return {'query': query, 'target': row['answer'], 'query_rationale': row['cot']}\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
    else:
        names = {"picture": "file_name"} if kind == "folder" else {}
        text = "\n".join(",".join(row.values()) for row in ROWS)
        header = ",".join(names.get(key, key) for key in ROWS[0])
        source = folder / ("metadata.csv" if kind == "folder" else "rows.csv")
        source.write_text(f"{header}\n{text}\n")
        if kind == "folder":
            source, columns = folder, {**COLUMNS, "query.image": "image"}
    import_pairs(name, source, tmp_path / "out", columns=columns)
    assert inputs(tmp_path / "out") == [
        {"text": row["question"], "image": [str(folder / row["picture"])]} for row in ROWS
    ]
    assert inputs(tmp_path / "out", "target") == [{"text": "red"}, {"text": "blue"}]
    assert thoughts(tmp_path / "out") == [{"query": "Look."}, {"query": "See."}]
    task = {"folder": "mine", "hub": "name"}.get(kind, "rows")
    assert read_pairs(tmp_path / "out" / "pairs")["task"][:] == [task, task]


def fake_hub(source, folder, monkeypatch):
    """Put a file that `datasets` made of a data set of the Hub where one is asked for; answers are classes there."""
    features = datasets.Features({key: datasets.Value("string") for key in ROWS[0]})
    features["answer"] = datasets.ClassLabel(names=["blue", "red"])
    datasets.Dataset.from_list(ROWS, features).save_to_disk(str(folder / "hub"))
    files = tuple((folder / "hub").glob("*.arrow"))
    moved = tuple(file.rename(folder / file.name) for file in files)

    def hub_table(asked):
        assert asked == source
        return HubTable(moved, "org/name@c0ffee:config/train")

    monkeypatch.setattr("mmemb_r1.training.importing.files.hub_table", hub_table)


def test_columns_of_our_names_beside_mapped_ones(tmp_path, write_json):
    row = {"q": "a", "target": {"text": "b"}, "task": "T", "negative_2": "d", "negative_1": "c", "pair_id": "7"}
    row["query_rationale"] = ["One.", "Two."]
    source = write_json(tmp_path / "rows.jsonl", [row])
    import_pairs("jsonl", source, tmp_path / "out", columns={"query": "q"})
    (pair,) = read_pairs(tmp_path / "out" / "pairs").to_list()
    assert (pair["pair_id"], pair["task"], pair["query"]["text"], pair["target"]["text"]) == ("7", "T", "a", "b")
    assert [one["text"] for one in pair["negatives"]] == ["c", "d"]
    assert thoughts(tmp_path / "out") == [{"query": "One.\nTwo."}]


def test_the_command_tells_what_it_did_and_what_is_too_long(tmp_path, media, write_json, tiny_checkpoint, capsys):
    source = write_json(tmp_path / "UME-sft-train.json", UME_ROWS)
    command = ["import", "ume-r1", str(source), "--output", str(tmp_path / "out"), "--media", str(media)]
    assert main([*command, "--model", str(tiny_checkpoint), "--max-rationale-tokens", "8"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^total +2 +2 +4 +0 +0$", told, re.MULTILINE)
    assert "2 rationales of the rationales are too long (50.0% of ume-r1's (2 of 4))" in told
    assert f"mmemb-r1 select --pairs {tmp_path / 'out' / 'pairs'}" in told


def test_a_checkpoint_that_is_not_there_is_told_before_the_import(tmp_path, media, write_json, capsys):
    source = write_json(tmp_path / "UME-sft-train.json", UME_ROWS)
    command = ["import", "ume-r1", str(source), "--output", str(tmp_path / "out"), "--media", str(media)]
    assert main([*command, "--model", str(tmp_path / "none" / "there")]) == 2
    assert "none/there" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_pictures_by_absolute_path(tmp_path, write_json):
    path = picture(tmp_path / "elsewhere" / "a.png")
    blank = picture(tmp_path / "blank.jpg")  # a picture as any other in files of one's own
    table = [{"query": {"image": str(path)}, "target": "a"}, {"query": {"image": "blank.jpg"}, "target": "b"}]
    source = write_json(tmp_path / "rows.jsonl", table)
    import_pairs("jsonl", source, tmp_path / "out")
    assert inputs(tmp_path / "out") == [{"image": [str(path)]}, {"image": [str(blank)]}]


def test_files_that_come_later_are_found(tmp_path, write_json):
    source = write_json(tmp_path / "rows.jsonl", [{"query": {"image": "a.png"}, "target": "a"}])
    with pytest.raises(ValueError, match="'a.png' is not in"):
        import_pairs("jsonl", source, tmp_path / "out")
    picture(tmp_path / "a.png")
    assert import_pairs("jsonl", source, tmp_path / "out").total.written == 1


@pytest.mark.parametrize("name", ["data/train-00000-of-00002", "train", "original-00000-of-00001", "wine"])
def test_the_task_is_what_a_file_or_a_folder_above_it_is_called(name, tmp_path):
    path = tmp_path / "wine" / f"{name}.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"query": "a", "target": "b"}]), path)
    import_pairs("parquet", tmp_path / "wine", tmp_path / "out")
    assert read_pairs(tmp_path / "out" / "pairs")["task"][:] == ["wine"]
