from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field

import pytest
from datasets import Dataset

from mmemb_r1.training.rationales import pool as pool_module
from mmemb_r1.training.rationales.draw import draw_rationales
from mmemb_r1.training.rationales.pool import KINDS, load_pool
from mmemb_r1.training.rationales.table import read_rationales


@dataclass
class Parrot:
    name: str
    num_samples: int
    word: str
    temperature: float = 0.5
    top_k: int | None = None
    loud: bool = False
    extra: dict | None = None
    batch_size: int = 8
    _client: object = field(init=False, default=None)

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"Worker {self.name!r}: `temperature` is {self.temperature}; allowed: 0 or more.")


@pytest.fixture(autouse=True)
def parrots(monkeypatch):
    monkeypatch.setattr(pool_module, "KINDS", {"parrot": f"{__name__}:Parrot", "lost": "mmemb_r1.no_such_module:X"})


@pytest.fixture
def load(tmp_path):
    def load(text, **options):
        path = tmp_path / "pool.yaml"
        path.write_text(text, encoding="utf-8")
        return load_pool(path, **options)

    return load


TWO = """
samples: 2
workers:
  - {name: polly, kind: parrot, word: hello}
  - name: jack
    kind: parrot
    word: rum
    samples: 5
    temperature: 1
    extra: {a: 1}
"""


def test_makes_the_workers(load):
    assert load(TWO) == [Parrot("polly", 2, "hello"), Parrot("jack", 5, "rum", temperature=1, extra={"a": 1})]


def test_samples(load):
    assert [worker.num_samples for worker in load(TWO, samples=1)] == [1, 1]
    assert load("workers: [{name: polly, kind: parrot, word: hello}]")[0].num_samples == 4


def test_some_of_the_workers_in_the_order_of_the_file(load):
    assert [worker.name for worker in load(TWO, only=["jack"])] == ["jack"]
    assert [worker.name for worker in load(TWO, only=["jack", "polly"])] == ["polly", "jack"]
    with pytest.raises(ValueError, match=r"pool\.yaml: there is no worker 'joe'; there are: polly, jack"):
        load(TWO, only=["joe"])


def test_only_the_workers_asked_for_are_imported(load):
    text = TWO + "  - {name: gone, kind: lost}\n"
    assert [worker.name for worker in load(text, only=["jack"])] == ["jack"]
    with pytest.raises(ValueError, match="No module named 'mmemb_r1.no_such_module'"):
        load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers:\n  - name: a\n   kind: b\n", r"pool\.yaml, line 3, column 4 is no YAML: expected <block end>"),
        ("workers: [a\x00b]", r"pool\.yaml is no YAML: .*not allowed"),
        ("- name: a", "it holds a list; allowed: the keys samples, workers"),
        ("", "it holds nothing; allowed: the keys"),
        (
            "samples: 2\nworkers: []\nsamples: 3",
            r"pool\.yaml, line 3, column 1 is no YAML: the key 'samples' is there twice",
        ),
        ("workers: [{name: a, name: b}]", "line 1, column 21 .*the key 'name' is there twice"),
        ("worker: []", "the key 'worker' is not known; allowed: samples, workers; did you mean 'workers'"),
        ("samples: 2", "workers is no list of at least one worker"),
        ("workers: []", "workers is no list of at least one worker"),
        ("workers: {name: a}", "workers is no list of at least one worker"),
        ("workers: [polly]", "worker 1 is a str; allowed: keys and their values"),
        ("workers: [{kind: parrot}]", "worker 1 has no key 'name'"),
        ("workers: [{name: a b}]", "the name of a worker is 'a b'; allowed: letters"),
        ("workers: [{name: 1}]", "the name of a worker is 1; allowed: letters"),
    ],
)
def test_refuses_a_file(text, message, load):
    with pytest.raises(ValueError, match=message):
        load(text)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("kind: cockatoo", "its kind is 'cockatoo'; allowed: parrot, lost"),
        (
            "kind: parot",
            "its kind is 'parot'; allowed: .*; did you mean 'parrot'",
        ),
        ("word: hello", "the key 'kind' is missing; allowed: parrot, lost"),
        ("kind: [parrot]", "its kind is .*; allowed: parrot"),
        ("kind: parrot", "the key 'word' is missing; allowed for parrot: kind, name, samples, word, temperature"),
        (
            "{kind: parrot, word: hello, wrod: x}",
            "the key 'wrod' is not known; allowed for parrot: kind, name, samples, word.*; did you mean 'word'",
        ),
        (
            "{kind: parrot, word: hello, num_samples: 2}",
            "the key 'num_samples' is not known; .*; did you mean 'samples'",
        ),
        ("{kind: parrot, word: hello, _client: 2}", "the key '_client' is not known"),
        ("{kind: parrot, word: 3}", "word is 3, of type int; allowed: str"),
        ("{kind: parrot, word: hello, temperature: 5e-1}", "temperature is '5e-1', of type str; allowed: float"),
        ("{kind: parrot, word: hello, top_k: 1.5}", r"top_k is 1\.5, of type float; allowed: int \| None"),
        ("{kind: parrot, word: hello, top_k: true}", "top_k is True, of type bool; allowed: int"),
        ("{kind: parrot, word: hello, samples: many}", "samples is 'many', of type str; allowed: int"),
        ("{kind: parrot, word: hello, samples: 0}", "samples is 0; allowed: a whole number of at least 1"),
    ],
)
def test_refuses_a_worker(keys, message, load):
    keys = keys.strip("{}")
    with pytest.raises(ValueError, match=rf"pool\.yaml: worker 'polly': {message}"):
        load(f"workers: [{{name: polly, {keys}}}]")


def test_what_a_worker_refuses_names_the_file(load):
    with pytest.raises(ValueError, match=r"pool\.yaml: Worker 'polly': `temperature` is -1; allowed: 0 or more"):
        load("workers: [{name: polly, kind: parrot, word: hello, temperature: -1}]")


def test_workers_may_share_keys_by_a_merge(load):
    shared = "- &polly {name: polly, kind: parrot, word: hello}\n  - {<<: *polly, name: jack}"
    assert load(f"samples: 2\nworkers:\n  {shared}") == [Parrot("polly", 2, "hello"), Parrot("jack", 2, "hello")]


def test_refuses_two_workers_of_a_name(load):
    with pytest.raises(ValueError, match="two workers have the name 'polly'"):
        load(TWO.replace("jack", "polly"))


def test_refuses_a_key_of_the_vendor_without_repeating_it(load):
    with pytest.raises(
        ValueError, match=r"worker 'polly': the key 'api_key' is not allowed: .* 'api_key_env'"
    ) as info:
        load("workers: [{name: polly, kind: parrot, word: hello, api_key: sk-secret}]")
    assert "sk-secret" not in str(info.value)


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"pool\.yaml: there is no such file"):
        load_pool(tmp_path / "pool.yaml")


def test_a_worker_by_import_path_as_the_docs_show_it(load, root, tmp_path, monkeypatch):
    document = (root / "docs" / "rationales.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```", document, re.M | re.S) if "FirstWords" in code]
    (tmp_path / "my_workers.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (entry,) = re.findall(r"`(\{name: first.*?\})`", document)
    (worker,) = load(f"samples: 2\nworkers:\n  - {entry}")
    pairs = [{"pair_id": "a", "query": {"text": "one two three four"}, "target": {"text": "five"}}]
    draw_rationales(Dataset.from_list(pairs), [worker], tmp_path / "out", progress=False)
    assert read_rationales(tmp_path / "out")["text"] == ["one two three"] * 2 + ["five"] * 2
    monkeypatch.delitem(sys.modules, "my_workers")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_module:Worker", "'no_such_module:Worker' can't be imported: No module named"),
        ("json:Worker", "'json:Worker' can't be imported: .*has no attribute 'Worker'"),
        ("json:loads", "json:loads is no dataclass"),
        (":Worker", "':Worker' is no import path; write module:name"),
    ],
)
def test_refuses_an_import_path(kind, message, load):
    with pytest.raises(ValueError, match=rf"pool\.yaml: worker 'polly': .*{message}"):
        load(f'workers: [{{name: polly, kind: "{kind}"}}]')


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_dataclass_with_what_a_pool_needs(kind):
    import dataclasses
    from importlib import import_module

    module, _, name = KINDS[kind].partition(":")
    fields = {field.name for field in dataclasses.fields(getattr(import_module(module), name)) if field.init}
    assert {"name", "num_samples", "batch_size"} <= fields
