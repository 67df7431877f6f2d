from __future__ import annotations

import json
import shutil

import pytest

from mmemb_r1.cli import main
from mmemb_r1.evaluation import load_results
from mmemb_r1.model_card import build_model_card, check_against_files, validate_model_card, write_model_card

FACTS = {
    "phase": "adaptive (GRPO)",
    "pairs": 5,
    "before": [
        {"phase": "init", "base model": "org/vlm"},
        {"phase": "joint", "gate": "not trained", "pairs": 12, "selection": "counterfactual, margin 0"},
        {"phase": "joint", "gate": "not trained", "pairs": 7},
    ],
}


@pytest.fixture
def told(checkpoint, results, sweep, emissions):
    """A checkpoint whose card tells everything; `(folder, text)`."""
    path = write_model_card(
        checkpoint, results, FACTS, curve=sweep, emissions=emissions, license="apache-2.0", datasets=["org/pairs"]
    )
    return checkpoint, path.read_text(encoding="utf-8")


def test_a_card_that_was_written_is_backed(told, tmp_path):
    folder, text = told
    check_against_files(text, folder)
    shutil.copytree(folder, tmp_path / "renamed")
    check_against_files(text, tmp_path / "renamed")
    least = write_model_card(tmp_path / "renamed", repo_id="org/name").read_text(encoding="utf-8")
    check_against_files(least, tmp_path / "renamed")


def test_what_people_add_is_theirs(told):
    folder, text = told
    added = text.replace("$sections", "").replace("## Limits\n", "## Limits\n\n- It knows no Latin.\n")
    added = added.replace("## Citation", "## Thanks\n\nTo all 400 of them.\n\n## Citation")
    added = added.replace("license: apache-2.0", "license: mit").replace("It is not meant to", "It should not")
    assert added != text
    check_against_files(added, folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| pairs | 12 |", "| pairs | 12000 |", "do not say '| pairs | 12000 |'"),
        ("| pairs | 12 |\n", "", "the section 'Before it: joint' leaves out '| pairs | 12 |'"),
        ("counterfactual, margin 0", "absolute", "do not say '| selection | absolute |'"),
        ("### Before it: joint\n\n|  |  |\n| --- | --- |\n| gate | not trained |\n| pairs | 12 |\n"
         "| selection | counterfactual, margin 0 |\n", "", "the section 'Before it: joint' is missing"),
        ("## Citation", "### Before it: gate\n\n| x | 1 |\n\n## Citation", "behind the section 'Before it: gate'"),
        ("Atlas, test split, 1,616", "MMEB-V2, 1,616", "MMEB-V2, 1,616 queries of 2 tasks"),
        ("| 0.250 | 0.750 |", "| 0.250 | 0.950 |", "do not say '| picture-name |"),
        ("value: 0.4062", "value: 0.9", "model-index is"),
        ("name: Atlas (simple)", "name: MTEB", "model-index is"),
        ("base_model: org/vlm", "base_model: org/new", "base_model is 'org/new', but files in the folder say"),
        ("base_model: org/vlm\n", "", "base_model is not there, but files in the folder say 'org/vlm'"),
        ("| architecture | qwen3_vl |", "| architecture | larger |", "do not say '| architecture | larger |'"),
        ("| gate threshold | 0.5 |\n", "", "leaves out '| gate threshold | 0.5 |'"),
        ("- Weak tasks (Atlas", "- Weak tasks (Mine", "do not say '- Weak tasks (Mine"),
        ("- No better than without", "- As good as without", "the section 'Limits' leaves out '- No better than"),
        ("- Not stated: languages.", "", "the section 'Limits' leaves out '- Not stated: languages.'"),
        ("## Limits\n", "## Limits\n\n- How it was trained is not recorded here.\n", "do not say '- How it was"),
        ("12.5 g of CO2", "1 g of CO2", "do not say 'Training emitted 1 g"),
        ("| 50% |", "| 40% |", "do not say '| 40% |"),
    ],
)  # fmt: skip
def test_each_untruth_is_found(told, old, new, message):
    folder, text = told
    assert text.count(old) >= 1
    changed = text.replace(old, new, 1)
    validate_model_card(changed, folder)  # its form is right
    with pytest.raises(ValueError) as error:
        check_against_files(changed, folder)
    assert message in str(error.value) and "write the card again with `mmemb-r1 card`" in str(error.value)


def test_the_line_is_named(told):
    folder, text = told
    changed = text.replace("| pairs | 12 |", "| pairs | 13 |")
    line = changed.splitlines().index("| pairs | 13 |") + 1
    with pytest.raises(ValueError, match=rf"^README.md, line {line}: "):
        check_against_files(changed, folder)


@pytest.mark.parametrize("name", ["training.json", "results.json", "curve-test.csv"])
def test_a_section_without_its_file_is_found(told, name, capsys):
    folder, _ = told
    (folder / name).unlink()
    (folder / "curve-test.png").unlink() if name.startswith("curve") else None
    assert main(["card", str(folder), "--check"]) == 2
    assert "README.md, line" in capsys.readouterr().err


def test_a_checkpoint_that_changed_after_its_card_was_written_is_found(told, capsys):
    folder, _ = told
    assert main(["card", str(folder), "--check"]) == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "gate_threshold": 0.25}))
    assert main(["card", str(folder), "--check"]) == 2
    assert "do not say '| gate threshold | 0.5 |'" in capsys.readouterr().err


def test_code_and_headings_of_others_are_no_statements(told):
    folder, text = told
    check_against_files(text + "\n```markdown\n## Results\n\n| all | 1.000 |\n```\n", folder)


def test_results_that_are_no_ones_own(checkpoint, results):
    """A card that calls a user's tasks Atlas, as one was written, is found out."""
    content = load_results(results)
    del content["config"]["dataset"]
    for task in content["tasks"].values():
        del task["data"]
    results.write_text(json.dumps(content))
    path = write_model_card(checkpoint, results)
    text = path.read_text(encoding="utf-8").replace("dataset not recorded, test", "Atlas, test")
    with pytest.raises(ValueError, match='the files in the folder do not say "Atlas, test split'):
        check_against_files(text, checkpoint)
    assert "Atlas" not in build_model_card(checkpoint)
