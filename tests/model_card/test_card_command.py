from __future__ import annotations

from mmemb_r1.cli import main
from mmemb_r1.model_card import build_model_card


def test_writes_the_card_and_checks_it(checkpoint, results, sweep, emissions, capsys):
    options = ["--results", str(results), "--curve", str(sweep), "--emissions", str(emissions)]
    options += ["--license", "apache-2.0", "--base-model", "org/vlm", "--repo-id", "org/name"]
    expected = build_model_card(
        checkpoint,
        results,
        curve=sweep,
        emissions=emissions,
        license="apache-2.0",
        base_model="org/vlm",
        datasets=["org/a", "org/b"],
        repo_id="org/name",
    )
    assert main(["card", str(checkpoint), *options, "--dataset", "org/a", "--dataset", "org/b"]) == 0
    path = checkpoint / "README.md"
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.read_text(encoding="utf-8") == expected

    assert main(["card", str(checkpoint)]) == 0
    assert path.read_text(encoding="utf-8") == expected
    capsys.readouterr()

    for option in ("--check", "--validate"):
        assert main(["card", str(checkpoint), option]) == 0
        assert capsys.readouterr().out == f"{path} is in order\n"


def test_print_writes_nothing(checkpoint, results, capsys):
    before = sorted(checkpoint.iterdir())
    assert main(["card", str(checkpoint), "--results", str(results), "--emissions", "3.5", "--print"]) == 0
    assert capsys.readouterr().out == build_model_card(checkpoint, results, emissions=3.5)
    assert sorted(checkpoint.iterdir()) == before


def test_check_tells_what_is_wrong(checkpoint, capsys):
    assert main(["card", str(checkpoint), "--check"]) == 2
    assert "there is no README.md to check; write one with" in capsys.readouterr().err
    (checkpoint / "README.md").write_text("# Hello\n")
    assert main(["card", str(checkpoint), "--check"]) == 2
    assert "README.md, line 1: there is no header" in capsys.readouterr().err
    assert main(["card", str(checkpoint), "--check", "--dataset", "org/a"]) == 2
    assert "leave --dataset out" in capsys.readouterr().err


def test_wrong_arguments(checkpoint, tmp_path, capsys):
    for name in ("results", "curve"):
        assert main(["card", str(checkpoint), f"--{name}", str(tmp_path / "none")]) == 2
        assert f"--{name} {tmp_path / 'none'}: there is no such file" in capsys.readouterr().err
    assert main(["card", str(checkpoint), "--emissions", "lots"]) == 2
    assert "--emissions lots: neither a file nor a number of grams" in capsys.readouterr().err
    assert main(["card", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not (checkpoint / "README.md").exists()
