from __future__ import annotations

import re

import pytest

from mmemb_r1.model_card import validate_model_card

HEADER = """\
library_name: sentence-transformers
license: apache-2.0
pipeline_tag: feature-extraction
tags:
- embeddings
base_model: org/backbone
datasets:
- org/pairs
model-index:
- name: org/name
  results:
  - task:
      type: retrieval
    dataset:
      name: Atlas
      type: atlas
      split: test
    metrics:
    - type: hit_at_1
      value: 0.5
"""
BODY = """
# A model

See [the numbers](curve.csv), [the paper](https://arxiv.org/abs/2604.06156), [below](#use) and `[none](none.md)`.

![a picture](pictures/a%20curve.png "Curve")

## Use

```python
print([f"{x}" for x in (1, 2)])
```

```text
[none](none.md) (
```
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("curve.csv", "pictures/a curve.png"):
        (tmp_path / name).touch()
    return tmp_path


def card(header=HEADER, body=BODY):
    return f"---\n{header}---\n{body}"


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_a_whole_card_passes(folder):
    assert validate_model_card(card(), folder) is None
    least = "library_name: sentence-transformers\npipeline_tag: feature-extraction\n"
    assert validate_model_card(card(least, ""), folder) is None


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("library_name: sentence-transformers\n", "", None, "library_name is None; allowed: sentence-transformers"),
        ("sentence-transformers", "keras", "library_name", "library_name is 'keras'; allowed: sentence-transformers"),
        (
            "feature-extraction",
            "text-generation",
            "pipeline_tag",
            "pipeline_tag is 'text-generation'; allowed: feature",
        ),
        ("apache-2.0", "Apache License 2", "license", "license is 'Apache License 2'; allowed: .*apache-2.0"),
        ("- embeddings", "- 3", "tags", "tags is [3]; allowed: a list of words"),
        (
            "org/backbone",
            "/models/backbone",
            "base_model",
            "base_model is '/models/backbone'; allowed: ids of the Hub",
        ),
        ("org/pairs", "a/b/c", "datasets", "datasets is 'a/b/c'; allowed: ids of the Hub"),
        ("tags:", "co2_eq_emissions:\n  emissions: lots\ntags:", "co2_eq", "emissions is 'lots'; allowed: grams"),
        ("value: 0.5", "value: .nan", "model-index", "model-index has nan for hit_at_1; allowed: numbers"),
        ("value: 0.5", "value: half", "model-index", "model-index has 'half' for hit_at_1; allowed: numbers"),
        (
            "      type: atlas\n",
            "",
            "model-index",
            "model-index is not well-formed (KeyError: 'type'); allowed: a list",
        ),
        ("- name: org/name\n  results", "  results", "model-index", "model-index is not well-formed"),
        (HEADER[HEADER.index("- name: org") :], "", "model-index", "model-index is not well-formed (it is empty)"),
        (
            HEADER[HEADER.index("- name: org") :],
            "  []\n",
            "model-index",
            "model-index is not well-formed (it is empty)",
        ),
        ("      value: 0.5", "      value: 0.5\n      mood: good", "model-index", "does not keep its results"),
        ("apache-2.0", "apache: 2.0", "license", "the header is not YAML: mapping values"),
    ],
)
def test_faults_of_the_header(folder, old, new, place, message):
    text = card(HEADER.replace(old, new))
    assert text != card()
    line = 1 if place is None else line_of(text, place)
    with pytest.raises(ValueError) as error:
        validate_model_card(text, folder)
    assert str(error.value).startswith(f"README.md, line {line}: ")
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), str(error.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: there is no header"),
        (BODY, "line 1: there is no header"),
        ("---\nlicense: mit\n# A model\n", "line 1: the header has no end"),
        ("---\njust words\n---\n", "line 2: the header is 'just words'; allowed: lines of `key: value`"),
    ],
)
def test_cards_without_a_header(folder, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_model_card(text, folder)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("(1, 2)])", "(1, 2)", "print(", "the Python snippet does not compile: "),
        ("[none](none.md) (\n```", "[none](none.md)", "```text", "the code that begins here has no end"),
        ("(curve.csv)", "(curves.csv)", "curves.csv", "the link curves.csv leads nowhere"),
        ("pictures/a%20curve.png", "pictures/curve.png", "curve.png", "the link pictures/curve.png leads nowhere"),
        ("(curve.csv)", "(../curve.csv)", "../curve.csv", "the link ../curve.csv leads out of the folder"),
        ("(curve.csv)", "(/etc/hosts)", "/etc/hosts", "the link /etc/hosts leads out of the folder"),
        ("# A model", '<img src="gone.png">', "gone.png", "the link gone.png leads nowhere"),
    ],
)
def test_faults_of_the_text(folder, old, new, place, message):
    text = card(body=BODY.replace(old, new))
    assert text != card()
    with pytest.raises(ValueError, match=re.escape(f"README.md, line {line_of(text, place)}: {message}")):
        validate_model_card(text, folder)
