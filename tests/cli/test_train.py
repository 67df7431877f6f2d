from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.cli._training import add_training_options, run_of
from mmemb_r1.training.joint.run import JointRun
from mmemb_r1.training.run import train_in_folder

COLORS = ("red", "green", "blue", "white")
RECIPE = {"per_device_train_batch_size": 4, "sub_batch_size": 2, "save_steps": 1, "disable_tqdm": True}
LORA = {"r": 2, "alpha": 8}


def write_pairs(path, colors=COLORS, columns=(), prefix="pair"):
    """A pairs table; only some columns of it if any are named."""
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as PILImage

    part = {"text": Value("string"), "image": List(Image())}
    features = {"pair_id": Value("string"), "query": part, "target": part, "query_rationale": List(Value("string"))}
    rows = [
        {
            "pair_id": f"{prefix} {number}",
            "query": {"text": "color?", "image": [PILImage.new("RGB", (64, 64), color)]},
            "target": {"text": color, "image": []},
            "query_rationale": [f"It is {color}."],
        }
        for number, color in enumerate(colors)
    ]
    table = Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=Features(features))
    table = table.select_columns(list(columns)) if columns else table
    if rows:
        table.to_parquet(str(path))
    else:  # which older releases of datasets do not write
        pyarrow.parquet.write_table(table.data.table, path)
    return path


def write_selected(path, pair_ids):
    from datasets import Dataset

    rows = [
        {"pair_id": pair_id, "side": "query", "worker": "w", "text": text, "posterior": posterior}
        for pair_id in pair_ids
        for text, posterior in (("Look at it.", 0.75), ("It has a color.", 0.25))
    ]
    Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs.parquet")


@pytest.fixture
def train(tiny_checkpoint, pairs, tmp_path):
    """Train with a recipe and options; the folder of the run is `tmp_path / "run"`."""

    def call(recipe, *options, **changes):
        config = tmp_path / "joint.yaml"
        config.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump({**RECIPE, **recipe}))
        given = {"--model": tiny_checkpoint, "--pairs": pairs, "--output": tmp_path / "run", "--config": config}
        given |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        return main(["train", "joint", *[str(part) for item in given.items() for part in item], "--cpu", *options])

    return call


def weights(folder):
    return load_file(folder / "model.safetensors")


class TestJoint:
    def test_trains_and_goes_on(self, train, tiny_checkpoint, tmp_path, capsys, new_modes):
        output = tmp_path / "run"
        assert train({"temperature": 0}, max_steps=2) == 2  # refused, and the folder is free for what is right
        assert train({}, max_steps=2) == 0
        assert "the trained checkpoint is in" in capsys.readouterr().out
        before, after = weights(tiny_checkpoint), weights(output / "model")
        assert any((before[name] != after[name]).any() for name in before)
        assert (output / "model" / "modules.json").is_file() and not (output / "adapter").exists()
        assert json.loads((output / "model" / "training.json").read_text())["steps"] == 2
        assert "those of the pairs table" in (output / "model" / "README.md").read_text()
        assert train({}, max_steps=3) == 0
        assert (output / "checkpoints" / "checkpoint-3").is_dir()
        new_modes(output)
        assert train({"learning_rate": 5e-4}, max_steps=4) == 2  # another run: it does not go on from this one
        error = capsys.readouterr().err
        assert "was begun with other settings or data" in error and "--accept-changes" in error

    def test_a_model_counts_by_its_content(self, train, tiny_checkpoint, tmp_path, capsys):
        """It may move; one of whose values another one was made is another model, also at the same place."""
        start = tmp_path / "start"
        shutil.copytree(tiny_checkpoint, start)
        assert train({}, max_steps=1, model=start) == 0
        moved = start.rename(tmp_path / "moved")
        (moved / "README.md").write_text("about it")
        assert train({}, max_steps=2, model=moved) == 0
        shutil.copytree(moved, start)
        values = load_file(start / "model.safetensors")
        next(value for value in values.values() if value.numel() > 500).view(-1)[123] += 1
        save_file(values, start / "model.safetensors", metadata={"format": "pt"})
        assert train({}, max_steps=3, model=start) == 2
        assert "begun with other settings or data: model was" in capsys.readouterr().err

    def test_a_token_is_never_written(self, train, tmp_path):
        assert train({"hub_token": "hf_secret"}, "--hub_token", "hf_other", max_steps=1) == 0
        written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert {"run.json", "training_args.bin"} <= {path.name for path in written}
        assert not [path for path in written if b"hf_secret" in path.read_bytes() or b"hf_other" in path.read_bytes()]

    def test_goes_on_from_the_last_checkpoint_that_is_whole(self, train, tmp_path):
        assert train({}, max_steps=3) == 0
        expected = weights(tmp_path / "run" / "model")
        checkpoints = tmp_path / "run" / "checkpoints"
        for step, name in ((3, "optimizer.pt"), (2, "model.safetensors")):
            path = checkpoints / f"checkpoint-{step}" / name
            path.write_bytes(path.read_bytes()[:-100])
        shutil.rmtree(tmp_path / "run" / "model")
        assert train({}, max_steps=3) == 0
        found = weights(tmp_path / "run" / "model")
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_with_selected_rationales(self, train, tmp_path, capsys):
        selected = write_selected(tmp_path / "selected.parquet", ["pair 0", "pair 2", "another"])
        assert train({}, max_steps=1, rationales=selected) == 0
        said = capsys.readouterr().out
        assert "rationales for 2 of 4 pairs; the others train the direct path alone" in said
        assert "They replace the column query_rationale of the pairs" in said
        facts = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
        assert facts["rationales"] == "6 selected ones, for 2 of the 4 pairs; by worker: w 6"
        write_selected(selected, ["pair 0"])
        assert train({}, max_steps=2, rationales=selected) == 2
        assert "begun with other settings or data: rationales was" in capsys.readouterr().err

    def test_measures_other_pairs(self, train, tmp_path, capsys):
        other = write_pairs(tmp_path / "eval.parquet", ["black", "gray"], prefix="other")
        assert train({}, max_steps=1, eval_pairs=other) == 0
        assert "eval_loss" in (said := capsys.readouterr().out) and "eval_nce_10" in said

    def test_saves_in_the_dtype_that_it_began_with(self, train, tiny_checkpoint, tmp_path):
        model = MMEmbR1(str(tiny_checkpoint), device="cpu", model_kwargs={"dtype": torch.bfloat16})
        model.save_pretrained(str(tmp_path / "half"))
        assert train({}, max_steps=1, model=tmp_path / "half") == 0
        assert {value.dtype for value in weights(tmp_path / "run" / "model").values()} == {torch.bfloat16}
        checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-1"
        assert {value.dtype for value in weights(checkpoint).values()} == {torch.float32}

    def test_dtype_and_attention(self, train, monkeypatch, capsys):
        from mmemb_r1.training import JointTrainer

        def stop(self, **kwargs):
            raise ValueError(f"{self.model.vlm.config.get_text_config()._attn_implementation}, {self.model.dtype}")

        monkeypatch.setattr(JointTrainer, "train", stop)
        assert train({"model": {"attn_implementation": "eager", "dtype": "bfloat16"}}) == 2
        assert "error: eager, torch.bfloat16" in capsys.readouterr().err

    def test_augments_pictures(self, train, tmp_path, monkeypatch, capsys):
        seen = []
        monkeypatch.setattr("mmemb_r1.atlas.augment", lambda picture, rng: seen.append(picture.size) or picture)
        assert train({}, max_steps=1) == 0
        assert not seen
        assert train({"augment_pictures": True}, max_steps=2) == 2
        assert "augment_pictures was not set, is now True" in capsys.readouterr().err
        assert train({"augment_pictures": True}, max_steps=1, output=tmp_path / "other") == 0
        assert seen == [(64, 64)] * 4

    def test_a_loss_that_is_not_finite_is_told_without_a_traceback(self, train, tiny_checkpoint, tmp_path, capsys):
        model = MMEmbR1(str(tiny_checkpoint), device="cpu")
        with torch.no_grad():
            for weight in model[0].model.vlm.parameters():  # finite, or it would not be loaded
                weight.fill_(1e38)
        model.save_pretrained(str(tmp_path / "broken"))
        assert train({}, max_steps=1, model=tmp_path / "broken") == 2
        error = capsys.readouterr().err
        assert "is not finite" in error and "pair 0" in error and "Traceback" not in error
        assert not (tmp_path / "run" / "model").exists()

    @pytest.mark.parametrize(
        ("recipe", "message"),
        [
            ({"temprature": 0.1}, "JointConfig has no field 'temprature'; did you mean 'temperature'"),
            ("- 1\n", "holds a list; it has to map fields to values"),
            ("a: [\n", "is no YAML"),
            ({"lora": None}, "lora holds a NoneType; it has to map options to values"),
            ({"lora": {"rank": 4}}, "lora: LoRA has no option 'rank' here; allowed: r, alpha"),
            ({"lora": {"adapt_vision_tower": True}, "freeze_vision_tower": True}, "leave out one"),
            ({"lora": {"alfa": 4}}, "peft's LoraConfig; did you mean 'alpha'"),
            ({"lor": {}}, "JointConfig has no field 'lor'; did you mean 'lora'"),
            (
                {"model": {"dtyp": "float32"}},
                "allowed: dtype, attn_implementation; did you mean 'dtype'",
            ),
            ({"quantization": {"load_in_4bit": True}}, "quantised weights can't be trained; add lora"),
            ({"model": {"device": "cpu"}}, "model has no option 'device'; allowed: dtype, attn_implementation"),
            ({"model": {"dtype": "bf16"}}, "model.dtype 'bf16'; allowed: auto, float32, bfloat16, float16"),
            (
                {"model": {"attn_implementation": 2}},
                "model.attn_implementation 2; allowed: names, sdpa or flash_atten",
            ),
            (
                {"model": {"attn_implementation": "flash_attention_2"}},
                "'flash_attention_2' can't be used here (FlashA",
            ),
        ],
    )
    def test_refuses_recipes(self, recipe, message, train, tmp_path, capsys):
        assert train(recipe) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_every_field_is_a_flag_with_its_help(self, capsys):
        from mmemb_r1.training import JointConfig

        with pytest.raises(SystemExit) as end:
            main(["train", "joint", "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0 and "--max-steps" in shown and "--pairs FILE" in shown
        text = " ".join(shown.split())
        for field in dataclasses.fields(JointConfig):
            assert f"--{field.name}" in shown or field.name == "output_dir"
            if field.name in JointConfig.__annotations__:
                assert field.metadata["help"] in text, field.name
        assert "Divides the cosine similarities. Default: 0.02" in text
        assert shown.index("--sub_batch_size") < shown.index("--learning_rate")

    def test_flags_win_over_the_recipe(self, train, tmp_path, monkeypatch, capsys):
        from mmemb_r1.training import JointTrainer

        made = []
        monkeypatch.setattr(JointTrainer, "train", lambda self, **kwargs: made.append(self.args) or 1 / 0)
        flags = ["--temperature", "0.5", "--task-weights", '{"": 2}', "--no-use-rationales", "--matryoshka-dims", "8"]
        with pytest.raises(ZeroDivisionError):
            train({"temperature": 0.1, "learning_rate": "5e-4"}, *flags, "--debug", "underflow_overflow")
        (config,) = made
        assert (config.temperature, config.learning_rate) == (0.5, 5e-4)
        assert config.task_weights == {"": 2} and not config.use_rationales and config.matryoshka_dims == [8]
        begun = json.loads((tmp_path / "run" / "run.json").read_text())
        assert begun["fields"]["temperature"] == 0.5 and "weight_decay" not in begun["fields"]
        with pytest.raises(SystemExit):
            train({}, "--temprature", "0.5")
        assert "--temprature is not known; did you mean '--temperature'" in capsys.readouterr().err

    def test_the_same_run_in_python(self, train, tiny_checkpoint, pairs, tmp_path):
        from mmemb_r1.training import JointRun, train_joint

        assert train({}, max_steps=1) == 0
        settings = {**RECIPE, "max_steps": 1, "use_cpu": True, "bf16": False, "activation_checkpointing": False}
        run = JointRun(model=str(tiny_checkpoint), pairs=pairs, output=tmp_path / "python", settings=settings)
        assert train_joint(run) == {}
        ours, theirs = weights(tmp_path / "run" / "model"), weights(tmp_path / "python" / "model")
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        with pytest.raises(ValueError, match="JointConfig has no field 'temprature'; did you mean 'temperature'"):
            JointRun(model="m", pairs=pairs, output=tmp_path, settings={"temprature": 1})

    def test_quantisation_without_bitsandbytes(self, train, monkeypatch, capsys):
        monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *args: False)
        assert train({"lora": {}, "quantization": {"load_in_4bit": True}}) == 2
        assert "needs bitsandbytes: pip install bitsandbytes" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["pairs", "rationales", "eval_pairs"])
    def test_refuses_what_is_no_table(self, option, train, tmp_path, capsys):
        assert train({}, **{option: tmp_path / "none.parquet"}) == 2
        assert f"--{option.replace('_', '-')} {tmp_path / 'none.parquet'}: there is no such file" in (
            capsys.readouterr().err
        )
        (tmp_path / "bad.parquet").write_bytes(b"no table")
        assert train({}, **{option: tmp_path / "bad.parquet"}) == 2
        assert "is no Parquet file" in capsys.readouterr().err

    def test_points_at_the_table_in_a_folder(self, train, tmp_path, capsys):
        write_selected(tmp_path / "selected.parquet", ["pair 0"])
        assert train({}, rationales=tmp_path) == 2
        assert f"is a folder; say {tmp_path / 'selected.parquet'}" in capsys.readouterr().err

    def test_refuses_tables(self, train, tmp_path, capsys):
        table = tmp_path / "table.parquet"
        for columns, colors, message in (
            (["query"], COLORS, "the pairs table has no column 'target'"),
            ([], [], "the pairs table has no rows"),
        ):
            assert train({}, pairs=write_pairs(table, colors, columns)) == 2
            assert message in capsys.readouterr().err
        assert train({}, rationales=write_selected(table, ["another"])) == 2
        assert "None of the 1 pairs of the selected table is in the pairs table" in capsys.readouterr().err
        assert train({}, eval_pairs=write_pairs(table)) == 2
        assert "what was trained on can't be evaluated on" in capsys.readouterr().err
        assert train({"use_rationales": False}, rationales=write_selected(table, ["pair 0"])) == 2
        assert "would not be used: use_rationales is false" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_refuses_what_is_no_checkpoint(self, train, tmp_path, capsys):
        from mmemb_r1.tiny import build_tiny_vlm

        assert train({}, model=tmp_path / "none") == 2
        assert f"There is no folder {tmp_path / 'none'}, and it is no Hub id" in capsys.readouterr().err
        (tmp_path / "empty").mkdir()
        assert train({}, model=tmp_path / "empty") == 2
        assert "empty: no checkpoint could be loaded from there" in capsys.readouterr().err
        vlm, processor = build_tiny_vlm("qwen3_vl")
        vlm.save_pretrained(tmp_path / "vlm")
        processor.save_pretrained(tmp_path / "vlm")
        assert train({}, model=tmp_path / "vlm") == 2
        assert f"is a qwen3_vl model, no mmemb-r1 checkpoint; make one of it: mmemb-r1 init --vlm {tmp_path}" in (
            capsys.readouterr().err
        )


class TestLora:
    @pytest.mark.slow
    def test_trains_adapters_and_goes_on_to_the_same_weights(
        self, train, tiny_checkpoint, tmp_path, capsys, new_modes
    ):
        from mmemb_r1.training.adapters import load_adapters

        whole, parts = tmp_path / "whole", tmp_path / "parts"
        recipe = {"lora": LORA, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
        assert train(recipe, max_steps=3, output=whole) == 0
        assert f"the adapters are in {whole / 'adapter'}" in capsys.readouterr().out
        for steps in (2, 3):
            assert train(recipe, max_steps=steps, output=parts) == 0
        ours, theirs = weights(whole / "model"), weights(parts / "model")
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

        before = weights(tiny_checkpoint)
        changed = {name for name in before if not torch.equal(before[name], ours[name])}
        assert changed == {name for name in before if "_proj" in name or "embed_tokens" in name}
        model, merged = MMEmbR1(str(tiny_checkpoint), device="cpu"), MMEmbR1(str(whole / "model"), device="cpu")
        load_adapters(model[0].model, whole / "adapter")
        inputs = ["red", "a color"]
        for mode in ("never", "always"):
            assert abs(model.encode(inputs, reasoning=mode) - merged.encode(inputs, reasoning=mode)).max() < 1e-5
        assert "LoRA, rank 2, alpha 8" in (whole / "model" / "README.md").read_text()
        new_modes(whole)

    def test_sharded_processes_are_refused_where_embeddings_are_tied(self, train, monkeypatch, capsys):
        from mmemb_r1.training import JointTrainer

        made = JointTrainer.__init__

        def sharded(self, *args, **kwargs):
            made(self, *args, **kwargs)
            self.is_fsdp_enabled = True

        monkeypatch.setattr(JointTrainer, "__init__", sharded)
        assert train({"lora": LORA}, max_steps=1) == 2
        assert "FSDP can't shard adapters on a model whose input and output embeddings" in capsys.readouterr().err

    def test_other_adapters_are_another_run(self, train, capsys):
        assert train({"lora": LORA}, max_steps=1) == 0
        assert train({"lora": {**LORA, "r": 4}}, max_steps=2) == 2
        assert "lora.r was 2, is now 4" in capsys.readouterr().err


def test_a_finished_run_is_not_done_again_but_goes_on_if_more_is_wanted(train, tmp_path, capsys):
    assert train({"max_steps": 1}) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train({"max_steps": 1}) == 0
    assert "the phase is finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert train({"max_steps": 2}) == 0
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["steps"] == 2


def test_only_what_changes_results_makes_another_run(pairs, tmp_path, monkeypatch):
    def identity(**settings):
        return JointRun(model="m", pairs=pairs, output=tmp_path, settings=settings).identity()

    first = identity(per_device_train_batch_size=8, mini_batch_size=2)
    assert first == identity(per_device_train_batch_size=8, mini_batch_size=4, save_steps=3, dataloader_num_workers=2)
    assert first == identity(per_device_train_batch_size=8, report_to="tensorboard", logging_steps=5, max_steps=9)
    assert first != identity(per_device_train_batch_size=4) and first != identity(temperature=0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert first == identity(per_device_train_batch_size=4) != identity(per_device_train_batch_size=8)


def test_changes_are_accepted_where_they_are_meant(pairs, tmp_path):
    """The record is then that of the changed run: it goes on without another word."""

    class Trainer:
        args, calls = None, 0

        def train(self, resume_from_checkpoint):
            self.calls += 1

    def run(temperature, *options):
        parser = argparse.ArgumentParser()
        add_training_options(parser, "JointConfig")
        args = parser.parse_args(options)
        args.model, args.pairs, args.output = "m", pairs, tmp_path / "run"
        args.base = args.columns = None
        return dataclasses.replace(run_of(args, JointRun), settings={"temperature": temperature})

    trainer = Trainer()
    train_in_folder(trainer, run(0.02))
    with pytest.raises(ValueError, match="temperature was 0.02, is now 0.1 .* go on in it all the same with --accept"):
        train_in_folder(trainer, run(0.1))
    train_in_folder(trainer, run(0.1, "--accept-changes"))
    train_in_folder(trainer, run(0.1))
    assert trainer.calls == 3


def test_what_a_run_was_trained_with_before_it_was_changed_is_told(train, tmp_path, capsys):
    assert train({"temperature": 0.5}, max_steps=1) == 0
    assert train({"temperature": 0.25}, "--accept-changes", max_steps=2) == 0
    assert train({"temperature": 0.25}, max_steps=3) == 0
    model = tmp_path / "run" / "model"
    record = json.loads((model / "training.json").read_text())
    (before,) = record.pop("before")
    assert (record["temperature"], record["steps"]) == (0.25, 3)
    assert (before["temperature"], before["steps"]) == (0.5, 1)
    assert before["pairs table"] == record["pairs table"]
    assert "### Before it: joint" in (model / "README.md").read_text()
    assert main(["card", str(model), "--check"]) == 0


def test_a_run_does_not_go_on_from_another_model_in_the_same_place(train, tiny_checkpoint, tmp_path, capsys):
    start = tmp_path / "start"
    MMEmbR1(str(tiny_checkpoint), device="cpu").save_pretrained(str(start))
    assert train({"max_steps": 1}, model=start) == 0
    model = MMEmbR1(str(start), device="cpu")
    with torch.no_grad():
        model[0].model.gate.output.bias.add_(1)
    model.save_pretrained(str(start))
    assert train({"max_steps": 1}, model=start) == 2
    assert "was begun with other settings or data: model was" in capsys.readouterr().err


def test_some_rows_of_the_pairs_are_trained_on(train, pairs, tmp_path, capsys):
    from datasets import Dataset

    table = Dataset.from_parquet(str(pairs)).add_column("task", ["a", "a", "b", "c"])
    table.to_parquet(str(pairs))
    assert train({"max_steps": 1, "per_device_train_batch_size": 2}, tasks="a,b", per_task=1) == 0
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["pairs"] == 2
    assert train({"max_steps": 1, "per_device_train_batch_size": 2}, tasks="a,b") == 2
    assert "per_task was 1, is now not set" in capsys.readouterr().err
    assert train({"max_steps": 1}, tasks="d") == 2
    assert "there is no task or group 'd'" in capsys.readouterr().err


def launch(processes, *options):
    """`accelerate launch`, on the CPU: without GPUs `--multi_gpu` is how it is made to start several processes."""
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "mmemb_r1.cli", "train", "joint", *map(str, options), "--cpu"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
def test_two_processes_train_what_one_does(lora, tiny_checkpoint, pairs, tmp_path):
    saved = []
    for processes in (1, 2):
        recipe = {**RECIPE, "per_device_train_batch_size": 4 // processes, "learning_rate": 1e-2}
        recipe |= {"optim": "sgd", **({"lora": lora} if lora else {})}
        config, output = tmp_path / f"{processes}.yaml", tmp_path / f"run-{processes}"
        config.write_text(yaml.safe_dump(recipe))
        options = {"--model": tiny_checkpoint, "--pairs": pairs, "--config": config, "--output": output}
        child = launch(processes, *(part for item in options.items() for part in item), "--max-steps", 2)
        assert child.returncode == 0, child.stderr[-3000:]
        assert child.stdout.count("the trained checkpoint is in") == 1
        saved.append(weights(output / "model"))
    one, two = saved
    before = weights(tiny_checkpoint)
    assert max((one[name] - before[name]).abs().max() for name in one) > 1e-4
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
