"""Parquet and YAML that are damaged or odd."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mmemb_r1.file_formats import read_parquet, read_yaml
from mmemb_r1.training.joint.run import JointRun
from mmemb_r1.training.run import read_recipe, read_settings


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"name": ["Lima", "Quito"] * 20, "n": list(range(40))}), path)
    return path


def test_whatever_is_wrong_with_a_table_names_its_file(table):
    """Arrow has errors of its own for some of this, an OSError that names no file for the rest."""
    whole = table.read_bytes()
    assert read_parquet(table)["n"].to_pylist() == list(range(40))
    assert read_parquet(table, columns=["n"]).column_names == ["n"]
    refused = 0
    for place in [*range(0, len(whole), 7), *range(16)]:
        for damaged in (whole[:place], whole[:place] + b"\xff\xff" + whole[place + 2 :]):
            table.write_bytes(damaged)
            try:
                read_parquet(table)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{table} can't be read: it is no Parquet file, or a damaged one (")
    assert refused > len(whole) // 7


def test_text_that_is_no_utf8_is_noticed_when_the_table_is_read(table):
    offsets = pyarrow.array([0, 2, 3], pyarrow.int32()).buffers()[1]
    array = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"\xff\xfea"))
    pyarrow.parquet.write_table(pyarrow.table({"text": array}), table)
    with pytest.raises(ValueError, match=r"table\.parquet can't be read: .*UTF8"):
        read_parquet(table)


def test_a_table_or_column_that_is_not_there(table):
    with pytest.raises(ValueError, match=r"table\.parquet has no column 'm'\. Write it again\."):
        read_parquet(table, columns=["n", "m"])
    with pytest.raises(ValueError, match=r"nowhere\.parquet can't be read: there is no such file\. Give one\."):
        read_parquet(table.with_name("nowhere.parquet"), hint="Give one.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "recipe.yaml, line 3, column 1 is no YAML: the key 'a' is there twice"),
        ("a: 1\n".encode("utf-16"), "recipe.yaml is no text in UTF-8 .* convert it first"),
        (b"a: [1\n", "recipe.yaml, line 2, column 1 is no YAML"),
        (b"a: 2024-13-45\n", "recipe.yaml is no YAML: month must be in 1..12"),
        (b"[" * 800, "recipe.yaml is no YAML that can be read: it is nested too deeply"),
        (b"3: a\n", "recipe.yaml has the key 3; it has to map names to values"),
        (b"null: a\n", "recipe.yaml has the key None; "),
        (b"- a\n", "recipe.yaml holds a list; it has to map fields to values"),
    ],
)
def test_recipes_that_are_none(content, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_settings(path)


def test_values_of_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("\ufeffa: 2024-01-02\nb: {c: [1, x]}\n", encoding="utf-8")  # Windows' editors begin a file so
    assert read_yaml(path) == {"a": datetime.date(2024, 1, 2), "b": {"c": [1, "x"]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_steps: many", "max_steps is 'many'; JointConfig takes int there"),
        ("max_steps: true", "max_steps is True; JointConfig takes int there"),
        ("max_steps: 1.5", "max_steps is 1.5; JointConfig takes int there"),
        ("learning_rate: [1]", r"learning_rate is \[1\]; JointConfig takes float there"),
        ("learning_rate: .nan", "learning_rate is nan; JointConfig takes float there"),
        ("augment_pictures: 'no'", "augment_pictures is 'no'; JointConfig takes bool there"),
        ("lora: {3: 4}", "recipe.yaml has the key 3"),
    ],
)
def test_a_value_of_another_type_names_its_field(line, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        JointRun(model="m", pairs=path, output=tmp_path, **read_recipe(path, JointRun))


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rate: 5e-4\nmax_steps: 3\nlr_scheduler_type: cosine\nwarmup_steps: 2\n", encoding="utf-8"
    )
    run = JointRun(model="m", pairs=path, output=tmp_path, **read_recipe(path, JointRun))
    assert run.fields["learning_rate"] == 5e-4
    assert run.fields["warmup_steps"] == 2
