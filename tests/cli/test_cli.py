from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import mmemb_r1
from mmemb_r1.cli import COMMANDS, main
from mmemb_r1.cli.encode import parse_lines
from mmemb_r1.cli.init import parse_settings
from mmemb_r1.embedding_cache import EmbeddingCache
from mmemb_r1.stream import load_shards
from mmemb_r1.tiny import build_tiny_vlm


def test_help_needs_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom mmemb_r1.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: status = end.code\n"
        "print('torch' in sys.modules or 'numpy' in sys.modules, status)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "False 0"
    assert all(name in child.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: mmemb-r1 {command}" in capsys.readouterr().out


def test_commands_import_only_the_standard_library_at_their_top(root):
    for file in (root / "src" / "mmemb_r1" / "cli").glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "mmemb_r1"}, f"{file.name} imports {name}"


def test_every_command_has_its_file(root):
    files = {file.stem for file in (root / "src" / "mmemb_r1" / "cli").glob("*.py")}
    assert {name.rstrip("_").replace("_", "-") for name in files if name[0] != "_"} == set(COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mmemb-r1 {mmemb_r1.__version__}\n"


def test_an_error_of_the_users_is_one_line_and_status_2(capsys, tmp_path):
    arguments = ["encode", "--model", "x", "--input", str(tmp_path / "none.jsonl"), "--output", "out.npy"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: --input \S+none.jsonl: there is no such file\n", captured.err)
    with pytest.raises(ValueError, match="there is no such file"):
        main(["--debug", *arguments])


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmemb_r1.cli.encode.run", interrupted)
    assert main(["encode", "--model", "x", "--input", "-", "--output", "o.npy"]) == 130


class TestInit:
    def test_makes_a_checkpoint_of_a_vlm(self, tmp_path, capsys, new_modes):
        from mmemb_r1 import MMEmbR1
        from mmemb_r1.tiny import build_tiny_vlm

        for part in build_tiny_vlm("qwen3_vl"):
            part.save_pretrained(tmp_path / "vlm")
        output = tmp_path / "checkpoint"
        arguments = ["init", "--vlm", str(tmp_path / "vlm"), "--output", str(output)]
        assert main([*arguments, "--set", "embedding_dim=16", "--set", "pooling=mean", "--max-image-tokens", "2"]) == 0
        assert str(output) in capsys.readouterr().out
        assert MMEmbR1(str(output), device="cpu").encode("a dog", reasoning="never").shape == (16,)
        assert MMEmbR1(str(output), device="cpu").max_image_tokens == 2
        new_modes(output)

        assert main(arguments) == 2
        assert "is not an empty folder" in capsys.readouterr().err

    def test_a_save_that_failed_is_not_in_the_way(self, tmp_path, monkeypatch):
        from mmemb_r1 import MMEmbR1
        from mmemb_r1.tiny import build_tiny_vlm

        for part in build_tiny_vlm("smolvlm"):
            part.save_pretrained(tmp_path / "vlm")
        output = tmp_path / "checkpoint"
        output.mkdir()
        arguments = ["init", "--vlm", str(tmp_path / "vlm"), "--output", str(output)]

        def fills_the_disk(self: MMEmbR1, path: str, **options: bool) -> None:
            (Path(path) / "model").mkdir(parents=True)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(MMEmbR1, "save_pretrained", fills_the_disk)
            assert main(arguments) != 0
        assert main(arguments) == 0
        assert [path.name for path in tmp_path.iterdir() if path.name != "vlm"] == ["checkpoint"]
        assert MMEmbR1(str(output), device="cpu").encode("a dog").shape == (32,)

    def test_settings(self):
        assert parse_settings(["a=1", "b=mean", "c=[1, 2]", "d=null"]) == {"a": 1, "b": "mean", "c": [1, 2], "d": None}
        with pytest.raises(ValueError, match="'pooling' is not of the form NAME=VALUE"):
            parse_settings(["pooling"])


@pytest.fixture
def encode(tiny_checkpoint):
    def run(source, output, *options):
        arguments = ["--model", str(tiny_checkpoint), "--input", str(source), "--output", str(output)]
        return main(["encode", *arguments, "--device", "cpu", *options])

    return run


class TestEncode:
    @pytest.fixture
    def inputs(self, tmp_path):
        folder = tmp_path / "inputs"
        folder.mkdir()
        Image.new("RGB", (64, 64), "green").save(folder / "green.png")
        lines = [
            json.dumps("a dog"),
            json.dumps({"image": "green.png", "text": "colour?", "instruction": "Be brief."}),
            "",
            json.dumps([{"role": "user", "content": [{"type": "image", "image": "green.png"}]}]),
        ]
        (folder / "inputs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder / "inputs.jsonl"

    def test_the_formats_hold_the_same(self, inputs, encode, tmp_path):
        options = ("--reasoning", "always", "--max-reasoning-tokens", "3", "--rationales")
        for suffix in ("npy", "jsonl", "safetensors"):
            assert encode(inputs, tmp_path / f"out.{suffix}", *options) == 0
        embeddings = np.load(tmp_path / "out.npy")
        meta = [json.loads(line) for line in (tmp_path / "out.meta.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert embeddings.shape == (3, 32)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(embeddings, [row.pop("embedding") for row in rows], atol=1e-6)
        assert rows == meta
        assert all(row["reasoned"] and 1 <= row["num_reasoning_tokens"] <= 3 for row in meta)
        with safe_open(tmp_path / "out.safetensors", framework="numpy") as tensors:
            np.testing.assert_allclose(tensors.get_tensor("embeddings"), embeddings, atol=1e-6)
            assert tensors.get_tensor("reasoned").tolist() == [True] * 3
            assert tensors.get_tensor("num_reasoning_tokens").tolist() == [row["num_reasoning_tokens"] for row in meta]
            np.testing.assert_allclose(tensors.get_tensor("gate_prob"), [row["gate_prob"] for row in meta], rtol=1e-6)
            assert json.loads(tensors.metadata()["rationales"]) == [row["rationale"] for row in meta]

    def test_the_order_is_that_of_the_lines(self, tiny_checkpoint, inputs, encode, tmp_path):
        assert encode(inputs, tmp_path / "out.npy", "--reasoning", "never") == 0
        model = mmemb_r1.MMEmbR1(str(tiny_checkpoint), device="cpu")
        expected = model.encode(parse_lines(inputs.open(encoding="utf-8"), inputs.parent)[1], reasoning="never")
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)

    def test_documents_have_their_own_prompt_and_default(self, inputs, tmp_path):
        model = mmemb_r1.MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), reasoning="always", max_reasoning_tokens=2)
        model.prompts |= {"query": "Find it.", "document": "Store it."}
        model.save_pretrained(str(tmp_path / "model"))
        for task, thinks in (("query", True), ("document", False)):
            arguments = ["encode", "--model", str(tmp_path / "model"), "--input", str(inputs), "--device", "cpu"]
            assert main([*arguments, "--output", str(tmp_path / "out.jsonl"), "--task", task]) == 0
            rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
            assert {row["reasoned"] for row in rows} == {thinks}
            given = parse_lines(inputs.open(encoding="utf-8"), inputs.parent)[1]
            embed = model.encode_query if task == "query" else model.encode_document
            np.testing.assert_allclose([row["embedding"] for row in rows], embed(given), atol=1e-5)

    def test_web_addresses_need_permission(self, encode, tmp_path, capsys):
        source = tmp_path / "in.jsonl"
        source.write_text('{"image": "http://127.0.0.1/a.png"}\n', encoding="utf-8")
        assert encode(source, tmp_path / "out.npy") == 2
        assert "allow_remote_media=True" in capsys.readouterr().err
        assert encode(source, tmp_path / "out.npy", "--allow-remote-media") == 2
        assert "127.0.0.1, which is no public address" in capsys.readouterr().err

    def test_an_input_that_cannot_be_embedded_is_named_by_its_line(self, encode, tmp_path, capsys):
        source = tmp_path / "bad.jsonl"
        source.write_text('"fine"\n\n{"text": "also fine"}\n{"image": "missing.png"}\n', encoding="utf-8")
        assert encode(source, tmp_path / "out.npy") == 2
        assert re.match(r"error: line 4 can't be embedded: .*missing\.png", capsys.readouterr().err.splitlines()[-1])
        assert not (tmp_path / "out.npy").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('"a"\n{"text": ', "line 2 is no JSON"),
            ("[" * 5000, "line 1 is no JSON"),
            ("9" * 5000, "line 1 is no JSON"),
            ('"a"\n\n3\n', "line 3 is 3; allowed: a string"),
            ("\n\n", "no line to embed"),
        ],
    )
    def test_refuses_lines(self, text, message, encode, tmp_path, capsys):
        (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
        assert encode(tmp_path / "in.jsonl", tmp_path / "out.npy") == 2
        assert message in capsys.readouterr().err

    def test_refuses_an_unknown_format(self, inputs, encode, tmp_path, capsys):
        assert encode(inputs, tmp_path / "out.csv") == 2
        assert "allowed: .safetensors, .npy, .jsonl" in capsys.readouterr().err

    def test_paths_that_are_no_relative_paths_stay(self, tmp_path):
        kept = ["data:image/png;base64,AA==", "/far/a.png", "HTTPS://example.org/d.png"]
        line = json.dumps({"image": [*kept, "b.png", {"path": "e.png"}], "text": "c.png"})
        _, (value,) = parse_lines([line], tmp_path)
        assert value == {
            "image": [*kept, str(tmp_path / "b.png"), {"path": str(tmp_path / "e.png")}],
            "text": "c.png",
        }


class TestEncodeInShards:
    @pytest.fixture(autouse=True)
    def quiet(self):
        """The command makes its logger speak where there is no terminal."""
        logger = logging.getLogger("mmemb_r1.stream")
        level = logger.level
        yield
        logger.setLevel(level)

    @pytest.fixture
    def source(self, tmp_path):
        lines = ["" if number == 2 else json.dumps(f"text {number}") for number in range(6)]
        (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / "in.jsonl"

    def test_a_folder_gets_shards(self, source, encode, tmp_path, capsys):
        options = ("--reasoning", "always", "--max-reasoning-tokens", "3", "--rationales")
        assert encode(source, tmp_path / "one.npy", *options) == 0
        for folder, how in (
            (f"{tmp_path}/a/", ("--shard-size", "2")),
            (tmp_path / "b", ("--format", "parquet", "--shard-size", "4")),
            (tmp_path / "c", ()),
        ):
            (tmp_path / "c").mkdir(exist_ok=True)
            assert encode(source, folder, *how, *options) == 0
            assert f"5 embeddings in {Path(folder)}, 5 of them reasoned\n" in capsys.readouterr().err
            ids, embeddings = load_shards(folder)
            assert ids == [0, 1, 2, 3, 4]
            np.testing.assert_allclose(embeddings, np.load(tmp_path / "one.npy"), atol=1e-5)
        names = {name: len(list((tmp_path / name).glob("shard-*"))) for name in "abc"}
        assert names == {"a": 3, "b": 2, "c": 1}
        assert (tmp_path / "b" / "shard-00001.parquet").is_file()
        with safe_open(tmp_path / "a" / "shard-00002.safetensors", framework="numpy") as tensors:
            assert len(json.loads(tensors.metadata()["rationales"])) == 1

    def test_it_goes_on_and_reads_standard_input(self, source, encode, tmp_path, capsys, monkeypatch):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        options = ("--reasoning", "never", "--shard-size", "2")
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(lines[:5] + ["3\n"])))
        assert encode("-", f"{tmp_path}/out/", *options) == 2
        assert "line 6 is 3; allowed" in capsys.readouterr().err
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(lines)))
        assert encode("-", tmp_path / "out", *options) == 0
        assert "0 of them reasoned; 2 of 3 shards were there already" in capsys.readouterr().err
        assert encode(source, tmp_path / "out", *options[:2], "--shard-size", "3") == 2
        assert "shard_size was 2, is now 3" in capsys.readouterr().err

    def test_an_input_that_cannot_be_embedded_is_named_by_its_line(self, source, encode, tmp_path, capsys):
        with source.open("a", encoding="utf-8") as stream:
            stream.write('\n\n{"image": "missing.png"}\n')
        assert encode(source, f"{tmp_path}/out/", "--shard-size", "4", "--reasoning", "never") == 2
        assert re.search(r"error: line 9 can't be embedded: .*missing\.png", capsys.readouterr().err)
        assert (tmp_path / "out" / "shard-00000.safetensors").exists()

    def test_options_of_folders_are_refused_for_files(self, source, encode, tmp_path, capsys):
        for options in (("--shard-size", "2"), ("--format", "parquet")):
            assert encode(source, tmp_path / "out.npy", *options) == 2
            assert f"{options[0]} is for folders of shards, and --output" in capsys.readouterr().err

    def test_a_cache_spares_what_was_embedded_before(self, source, encode, tmp_path, monkeypatch):
        options = ("--reasoning", "never", "--cache", str(tmp_path / "cache"))
        assert encode(source, tmp_path / "one.npy", *options) == 0
        assert len(EmbeddingCache(tmp_path / "cache")) == 5

        def fail(*args, **kwargs):
            raise AssertionError("something was embedded")

        monkeypatch.setattr(
            mmemb_r1.MMEmbR1Model, "embed_batches", lambda self, batches, **options: map(fail, batches)
        )
        assert encode(source, tmp_path / "two.npy", *options) == 0
        assert encode(source, f"{tmp_path}/three/", *options) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"))
        np.testing.assert_array_equal(load_shards(tmp_path / "three")[1], np.load(tmp_path / "one.npy"))


def test_a_command_logs_its_own_lines_once_and_leaves_no_handler():
    """The libraries have handlers of their own: one on the root logger would print their lines a second time."""
    code = (
        "import logging, mmemb_r1.cli.compare as compare\nfrom mmemb_r1.cli import main\n"
        "library = logging.getLogger('library'); library.addHandler(logging.StreamHandler())\n"
        "def run(args):\n    library.warning('theirs')\n    logging.getLogger('mmemb_r1.x').info('ours')\n"
        "    return 0\n"
        "compare.run = run\nmain(['compare', 'a', 'b'])\n"
        "logging.getLogger('mmemb_r1.x').info('later')\n"
        "print(logging.getLogger('mmemb_r1').handlers, logging.getLogger().handlers)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (child.stderr, child.stdout) == ("theirs\nours\n", "[] []\n")
