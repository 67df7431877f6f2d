from __future__ import annotations

from mmemb_r1.cli import main


def test_build(tmp_path, capsys):
    output = tmp_path / "atlas"
    arguments = ["--size", "32", "--num-countries", "12", "--num-objects", "10", "--generated-rows", "5"]
    arguments += ["--num-drawings", "12"]
    assert main(["atlas", "build", "--output", str(output), *arguments, "--second-font", "none"]) == 0
    assert (output / "README.md").is_file()
    assert "train" in capsys.readouterr().out


def test_a_wrong_argument_is_an_error_without_traceback(tmp_path, capsys):
    assert main(["atlas", "build", "--output", str(tmp_path / "atlas"), "--size", "1"]) == 2
    assert "error: size is 1" in capsys.readouterr().err
