from __future__ import annotations

import re
import shutil

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from tests.training.selection.conftest import make_pairs, make_rationales

from mmemb_r1.cli import _parser, main
from mmemb_r1.cli.select import _load_evaluator
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.selection.evaluator import evaluator_kind


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluators") / "vlm"
    for part in build_tiny_vlm("qwen3_vl", texts=["yes no Yes No Does this target match this query?"]):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def pairs():
    return make_pairs()


@pytest.fixture
def select(pairs, tiny_checkpoint, tmp_path):
    """`select(*options)` runs the command on four pairs; `pairs=` is another table, `evaluator=` another folder."""

    def run(*options, pairs=pairs, evaluator=tiny_checkpoint):
        pairs.to_parquet(tmp_path / "pairs.parquet")
        few = make_rationales().filter(lambda row: row["pair_id"] in ("capital/Peru", "capital/Chile"))
        few.to_parquet(tmp_path / "rationales.parquet")
        files = ["--pairs", tmp_path / "pairs.parquet", "--rationales", tmp_path / "rationales.parquet"]
        files += ["--output", tmp_path / "out", "--evaluator", evaluator]
        return main(["select", *map(str, files), "--device", "cpu", "--negatives", "2", *options])

    return run


def test_an_embedding_model_judges(select, tmp_path, capsys, caplog):
    assert select("--selection", "none") == 0
    said = capsys.readouterr().out
    assert "Kept 18 of 18 rationales scored (100.0%)" in said
    assert f"the selection is in {tmp_path / 'out'}" in said
    assert f"mmemb-r1 train joint --model DIR --pairs {tmp_path / 'pairs.parquet'}" in said.splitlines()[-1]
    assert f"--rationales {tmp_path / 'out' / 'selected.parquet'} " in said.splitlines()[-1]
    assert pq.read_table(tmp_path / "out" / "selected.parquet").num_rows == 18
    assert (tmp_path / "out" / "report.png").exists()


def test_options_of_selection_ask_nothing_again(select, tmp_path, caplog):
    assert select("--selection", "none") == 0
    before = pq.read_table(tmp_path / "out" / "candidates.parquet")
    options = ("--no-wrong-pair-correction", "--space", "log-odds", "--margin", "-100", "--temperature", "2")
    assert select(*options) == 0
    assert "1 of 1 shards are scored already" in caplog.messages
    after = pq.read_table(tmp_path / "out" / "candidates.parquet")
    assert after["confidence_with"] == before["confidence_with"]
    assert after["posterior"] != before["posterior"]
    assert after.filter(after["kept"]).num_rows == 18


def test_parts(select, tmp_path, capsys):
    assert select("--part", "1/2", "--shard-size", "2") == 0
    assert "this part is done" in capsys.readouterr().out
    assert not (tmp_path / "out" / "selected.parquet").exists()
    assert select("--shard-size", "2") == 0
    assert (tmp_path / "out" / "selected.parquet").exists()


def test_a_vision_language_model_judges(select, vlm, tmp_path, capsys):
    assert select("--intervention", "shuffle", evaluator=vlm) == 0
    assert '"kind": "vlm"' in capsys.readouterr().out
    assert pq.read_table(tmp_path / "out" / "candidates.parquet").num_rows == 20


def test_stopping_early_keeps_the_same(select, tmp_path):
    assert select("--no-wrong-pair-correction") == 0
    plain = pq.read_table(tmp_path / "out" / "selected.parquet")
    shutil.rmtree(tmp_path / "out")
    assert select("--no-wrong-pair-correction", "--early-stop") == 0
    assert pq.read_table(tmp_path / "out" / "selected.parquet").equals(plain)


def test_the_kind_is_that_of_the_model(vlm, tiny_checkpoint):
    assert (evaluator_kind(str(vlm)), evaluator_kind(str(tiny_checkpoint))) == ("vlm", "embedding")


def test_the_old_name_of_the_wrong_pair_correction_is_refused(select, capsys):
    with pytest.raises(SystemExit):
        select("--no-pair-aware")
    assert "--no-pair-aware is called --no-wrong-pair-correction now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--selection", "best"), "selection='best'; allowed: 'none', 'absolute', 'counterfactual'"),
        (("--negatives", "0"), "num_negatives=0; allowed: 1 or more"),
        (("--batch-size", "0"), "--batch-size 0; allowed: 1 or more"),
        (("--prompt", "evaluator"), "--prompt is no option of the evaluator kind 'embedding'"),
        (("--evaluator-kind", "vlm", "--cosine-bias", "0"), "--cosine-bias is no option of the evaluator kind 'vlm'"),
        (("--evaluator-kind", "vllm"), "--device is no option of the evaluator kind 'vllm'"),
        (("--engine-options", "max_model_len=9"), "--engine-options is no option of the evaluator kind 'embedding'"),
        (("--early-stop", "--margin", "-1"), "early_stop gives up rationales that margin=-1.0 could keep"),
        (("--negatives", "40"), "the table has too few different pairs"),
    ],
)
def test_refuses_options(select, options, message, capsys):
    assert select(*options) == 2
    assert message in capsys.readouterr().err


def test_refuses_what_is_not_there(select, tmp_path, capsys):
    assert select("--pairs", str(tmp_path / "none.parquet")) == 2
    assert re.search(r"error: --pairs \S+none.parquet: there is no such file", capsys.readouterr().err)
    assert select("--rationales", str(tmp_path / "none")) == 2
    assert "there is no such folder or file. `mmemb-r1 rationales` writes one" in capsys.readouterr().err
    assert select(evaluator=tmp_path / "nobody") == 2
    assert re.search(r"error: There is no folder \S+nobody, and it is no Hub id", capsys.readouterr().err)


def test_options_of_vllm_go_to_its_evaluator(vlm, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "mmemb_r1.training.selection.evaluator.load_evaluator",
        lambda *args, **options: given.update(options, args=args),
    )
    command = ["select", "--pairs", "a", "--rationales", "b", "--output", "c", "--evaluator", str(vlm)]
    command += [
        "--evaluator-kind",
        "vllm",
        "--engine-options",
        "max_model_len=9",
        "enforce_eager=true",
        "--batch-size",
        "3",
    ]
    _load_evaluator(_parser(command).parse_args(command))
    assert given == {
        "args": (str(vlm), "vllm"), "early_stop": False, "batch_size": 3,
        "engine": {"max_model_len": 9, "enforce_eager": True},
    }  # fmt: skip
    for wrong, message in (
        ("9", "--engine-options 9; allowed: NAME=VALUE"),
        ("a=[", "--engine-options a=\\[: its value can't be read"),
    ):
        with pytest.raises(ValueError, match=message):
            _load_evaluator(_parser(command).parse_args([*command, "--engine-options", wrong]))
    with pytest.raises(ValueError, match="--jobs 2 is for models on a CPU; vLLM divides its work itself"):
        _load_evaluator(_parser(command).parse_args([*command, "--jobs", "2"]))


def test_names_the_pair_that_is_wrong(select, pairs, tmp_path, capsys):
    rows = list(pairs)
    bad = Dataset.from_list([*rows[:3], {**rows[3], "target": {"text": ""}}, *rows[4:]])
    assert select(pairs=bad) == 2
    assert "row 3 (pair_id 'capital/Kenya')" in capsys.readouterr().err
    pictures = [{**row, "query": {**row["query"], "image": f"{place}.png"}} for place, row in enumerate(rows[:3])]
    assert select(pairs=Dataset.from_list(pictures)) == 2
    assert re.search(r"row 0, pair '\S+', query: there is no image file '\S*\d.png'", capsys.readouterr().err)
    assert select(pairs=Dataset.from_list(rows[1:])) == 2
    assert "10 rationales are about 1 pairs that the pairs table lacks: 'capital/Peru'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_come_to_the_same_as_one(select, tmp_path):
    assert select("--selection", "none", "--shard-size", "2") == 0
    alone = pq.read_table(tmp_path / "out" / "candidates.parquet")
    shutil.rmtree(tmp_path / "out")
    assert select("--selection", "none", "--shard-size", "2", "--jobs", "2") == 0
    both = pq.read_table(tmp_path / "out" / "candidates.parquet")
    floats = [name for name in alone.column_names if str(alone.schema.field(name).type) == "float"]
    assert both.num_rows > 0 and both.drop_columns(floats).equals(alone.drop_columns(floats))
    for name in floats:
        assert both[name].to_pylist() == pytest.approx(alone[name].to_pylist(), abs=1e-4, nan_ok=True)
    log = (tmp_path / "out" / "jobs.log").read_text()  # who ends last selects; both do if they end together
    assert log.count("this part is done") + log.count("the selection is in") == 2


def test_jobs_are_parts_of_their_own(select, capsys):
    assert select("--jobs", "2", "--part", "1/2") == 2
    assert "--jobs 2; allowed: 1 or more, and together with --part 1 alone" in capsys.readouterr().err
