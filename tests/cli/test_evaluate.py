"""`mmemb-r1 evaluate` on a small Atlas: what it writes, shows, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.cli._options import model_name
from mmemb_r1.evaluation import load_results, read_query_rows, rows_path
from mmemb_r1.fingerprint import folder_digest

pytestmark = pytest.mark.usefixtures("one_thread")
TASKS = "fact-capital,flag-capital"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    from mmemb_r1.atlas import build_atlas

    folder = tmp_path_factory.mktemp("evaluate") / "atlas"
    build_atlas(folder, size=32, num_countries=12, num_objects=20, generated_rows=20, num_drawings=12)
    return folder


@pytest.fixture
def evaluate(tiny_checkpoint, atlas):
    def run(*arguments, model=tiny_checkpoint):
        others = {"--mmeb", "--pairs", "--reader"}
        options = [] if others.intersection(arguments) else ["--atlas", str(atlas)]
        return main(["evaluate", "--model", str(model), *options, "--device", "cpu", *map(str, arguments)])

    return run


def test_a_trained_model_has_the_name_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_name("runs/joint/model") == "joint"
    assert model_name(str(tmp_path / "tiny")) == "tiny" and model_name("org/name") == "name"


def test_a_file_holds_the_results(evaluate, tiny_checkpoint, tmp_path, capsys):
    output = tmp_path / "results.json"
    assert evaluate("--modes", "never", "--split", "validation", "--output", output) == 0
    results = load_results(output)
    assert results["config"]["model"] == "tiny-checkpoint"
    assert results["config"]["files"] == folder_digest(tiny_checkpoint)
    assert (results["config"]["dataset"], results["config"]["split"]) == ("Atlas", "validation")
    assert results["config"]["candidates"]["country"] == 12
    assert len(results["tasks"]) > 10
    assert all("majority" in task for task in results["tasks"].values())
    assert any("no_image" in task for task in results["tasks"].values())
    tasks = {name: set(task) for name, task in results["tasks"].items()}
    assert "text_alone" in tasks["same-clock"] and "text_alone" not in tasks["fact-capital"]
    assert {"perceptual", "mixed"} <= set(results["summary"])
    assert all(len(task["modes"]["never"]["interval"]) == 2 for task in results["tasks"].values())
    assert "mean of all" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_holds_all_and_is_gone_on_with(evaluate, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert evaluate("--tasks", TASKS, "--rationales", "--output", run) == 0
    assert {file.name for file in run.iterdir()} == {
        "run.json", "tasks", "cache", "results.json", "results.md", "report.html",
    }  # fmt: skip
    results = load_results(run / "results.json")
    assert list(results["tasks"]) == TASKS.split(",")
    assert results["config"]["modes"] == ["never", "always", "auto"]
    assert (run / "results.md").read_text().startswith("# Evaluation of tiny-checkpoint")
    capsys.readouterr()

    def fail(*args, **kwargs):
        raise AssertionError("something was embedded")

    monkeypatch.setattr(MMEmbR1, "explain", fail)
    assert evaluate("--tasks", TASKS, "--rationales", "--output", run, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == results["tasks"]
    assert evaluate("--tasks", TASKS, "--rationales", "--output", run, "--format", "markdown") == 0
    assert "| fact-capital |" in capsys.readouterr().out
    assert evaluate("--tasks", TASKS, "--output", run) == 2
    assert "was begun with other settings or data: rationales was True, is now False" in capsys.readouterr().err


def test_a_cache_serves_another_run(evaluate, tmp_path):
    options = ("--tasks", "fact-capital", "--modes", "never", "--cache", tmp_path / "cache")
    assert evaluate(*options, "--output", tmp_path / "one.json") == 0
    assert evaluate(*options, "--output", tmp_path / "two.json") == 0
    one, two = (
        load_results(tmp_path / f"{name}.json")["tasks"]["fact-capital"]["modes"]["never"] for name in ("one", "two")
    )
    for side in ("seconds_per_query", "seconds_per_document"):
        assert one.pop(side) > 0 and two.pop(side) is None
    assert one == two


def test_candidates_in_several_modes(evaluate, tmp_path, capsys):
    options = (
        "--tasks",
        "fact-capital",
        "--modes",
        "never,auto",
        "--document-reasoning",
        "never,always",
        "--limit",
        "2",
    )
    assert evaluate(*options, "--output", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "auto+always" in shown and "docs think" in shown
    compare = ["compare", str(tmp_path / "run"), str(tmp_path / "run"), "--mode-a", "auto", "--mode-b", "auto+always"]
    assert main(compare) == 0
    assert evaluate("--document-reasoning", "often") == 2
    assert "--document-reasoning often: 'often' is not known" in capsys.readouterr().err


def test_a_quick_look_is_noted(evaluate, tmp_path):
    assert evaluate("--tasks", TASKS, "--modes", "never", "--limit", "2", "--output", tmp_path / "few.json") == 0
    results = load_results(tmp_path / "few.json")
    assert [task["n"] for task in results["tasks"].values()] == [2, 2]
    assert results["config"]["limit"] == 2


def test_tasks_are_chosen_by_their_groups(evaluate, tmp_path):
    options = ("--modes", "never", "--limit", "1", "--output", tmp_path / "few.json")
    assert evaluate("--tasks", "multi-hop,fact-capital", *options) == 0
    groups = {name: task["complexity"] for name, task in load_results(tmp_path / "few.json")["tasks"].items()}
    assert groups.pop("fact-capital") == "simple"
    assert len(groups) > 1 and set(groups.values()) == {"multi-hop"}


@pytest.fixture
def pairs(tmp_path):
    """Questions of two tasks with their answers; those of one have negatives."""
    text = {"text": Value("string")}
    rows = [
        {
            "pair_id": f"{task}/{number}",
            "task": task,
            "query": {"text": f"{task} number {number}?"},
            "target": {"text": f"{number}"},
            "negatives": [{"text": f"not {number}"}] if task == "few" else [],
        }
        for task in ("few", "many")
        for number in range(6)
    ]
    strings = dict.fromkeys(("pair_id", "task"), Value("string"))
    path = tmp_path / "pairs.parquet"
    features = Features({**strings, "query": text, "target": text, "negatives": List(text)})
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def test_a_table_of_ones_own_gets_all_files(evaluate, pairs, tmp_path, capsys):
    run = tmp_path / "run"
    assert evaluate("--pairs", pairs, "--output", run) == 0
    assert {file.name for file in run.iterdir()} == {
        "run.json", "tasks", "cache", "results.json", "results.md", "report.html",
    }  # fmt: skip
    results = load_results(run / "results.json")
    assert {name: (task["n"], task["candidates"]) for name, task in results["tasks"].items()} == {
        "few": (6, 12), "many": (6, 6),
    }  # fmt: skip
    assert results["config"]["dataset"] == "pairs.parquet" and results["summary"]["all"]["tasks"] == 2
    assert read_query_rows(rows_path(run, "few", "auto"))["rank"].max() <= 2, "a query has its negatives alone"
    assert "Score over the share of queries that think" in (run / "report.html").read_text()
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"mmemb-r1 compare {run} OTHER_RUN" in told and "mmemb-r1 card" in told
    assert main(["compare", str(run), str(run), "--mode-a", "never", "--mode-b", "always", "--num-samples", "20"]) == 0
    assert evaluate("--pairs", pairs, "--tasks", "many", "--limit", "2", "--output", tmp_path / "few.json") == 0
    assert {name: task["n"] for name, task in load_results(tmp_path / "few.json")["tasks"].items()} == {"many": 2}


def test_a_reader_of_ones_own(evaluate, tmp_path, monkeypatch):
    (tmp_path / "my_readers.py").write_text(
        "from mmemb_r1.evaluation import RetrievalTask\n\n\n"
        "def read_capitals(source):\n"
        "    lines = [line.split(',') for line in open(source)]\n"
        "    countries, cities = ([line[side].strip() for line in lines] for side in (0, 1))\n"
        "    right = [{city: 1.0} for city in cities]\n"
        "    yield RetrievalTask('capitals', 'hit@1', {}, countries, countries, cities, cities, right)\n"
    )
    (tmp_path / "capitals.csv").write_text("Peru, Lima\nFrance, Paris\n")
    monkeypatch.chdir(tmp_path)
    reader = ("--reader", "my_readers:read_capitals", "--source", "capitals.csv")
    assert evaluate(*reader, "--modes", "never", "--output", "run") == 0
    results = load_results("run/results.json")
    assert results["tasks"]["capitals"]["n"] == 2
    assert (results["config"]["dataset"], results["config"]["reader"]) == ("capitals.csv", "my_readers:read_capitals")


@pytest.mark.parametrize("names", ["", "flag-capitol"])
def test_names_of_no_task_are_refused(evaluate, tmp_path, capsys, names):
    assert evaluate("--tasks", names, "--output", tmp_path / "none.json") == 2
    assert f"there is no task or group {names!r}; allowed: " in capsys.readouterr().err


def test_any_model_of_sentence_transformers_can_be_measured(evaluate, tmp_path, capsys):
    words = ["[UNK]", "capital", "of", "the"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(tmp_path / "plain"))
    plain = tmp_path / "plain"
    assert evaluate("--tasks", "fact-capital", "--output", tmp_path / "run", model=plain) == 0
    results = load_results(tmp_path / "run" / "results.json")
    assert results["config"]["modes"] == ["never"]
    assert results["tasks"]["fact-capital"]["modes"]["never"]["invocation_ratio"] == 0
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "cache").exists()
    assert evaluate("--tasks", "fact-capital", "--modes", "never,always", model=plain) == 2
    assert "can't be asked to think: 'always' was asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "never,sometimes"], "'sometimes' is not known; allowed: never, always, auto"),
        (["--tasks", "fact-capital,flags"], "there is no task or group 'flags'; allowed: compare-area"),
        (["--limit", "0"], "--limit 0: at least 1 is needed"),
        (["--rationales"], "are kept in the rows of a run's folder; name one: --output RUN/"),
        (["--rationales", "--output", "results.json"], "name one: --output RUN/"),
        (["--submission", "x.json"], "--submission is for --mmeb"),
        (["--num-frames", "4"], "--num-frames is for --mmeb"),
        (["--download"], "--download is for --mmeb"),
        (
            ["--mmeb", "x", "--submission-mode", "auto"],
            "--submission-mode is of the file that --submission FILE writes",
        ),
        (["--mmeb", "x", "--submission-metadata", "x.json"], "is of the file that --submission FILE writes"),
        (["--mmeb", "x", "--submission", "x.json", "--limit", "2"], "all queries of all tasks; leave --limit out"),
        (["--mmeb", "x", "--submission", "."], "--submission . is a folder; name a file"),
        (
            ["--mmeb", "x", "--submission", "x.json", "--modes", "never,auto"],
            "has the scores of one mode; choose it: --submission-mode never or auto",
        ),
        (
            ["--mmeb", "x", "--submission", "x.json", "--modes", "never", "--submission-mode", "auto"],
            "--submission-mode auto: that mode is not run; it would be never",
        ),
        (["--mmeb", "x", "--split", "test"], "--split is for --atlas"),
        (["--mmeb", "missing"], "there is no folder"),
        (
            ["--pairs", "missing.parquet"],
            "missing.parquet: there is no such file or folder",
        ),
        (["--pairs", "x", "--split", "test"], "--split is for --atlas"),
        (["--pairs", "x", "--source", "y"], "--source is for --reader"),
        (["--reader", "my:reader"], "--reader my:reader needs to be told what to read: --source X"),
        (["--reader", "reader", "--source", "y"], "there is no reader 'reader'; allowed: atlas, mmeb, pairs, or"),
    ],
)
def test_refuses(arguments, message, evaluate, capsys):
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err


def test_atlas_or_mmeb(capsys):
    for arguments in ([], ["--atlas", "a", "--mmeb", "b"]):
        with pytest.raises(SystemExit):
            main(["evaluate", "--model", "x", *arguments])
    assert "not allowed with argument --atlas" in capsys.readouterr().err


def test_help_answers_without_torch(root: Path):
    import subprocess
    import sys

    code = (
        "import sys\nfrom mmemb_r1.cli import main\n"
        "try: main(['evaluate', '--help'])\nexcept SystemExit: print({'torch', 'numpy'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "set()"
