"""Tables of pairs from the Hub, by the real client of `datasets`, from a stand-in on this machine."""

from __future__ import annotations

import io

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mmemb_r1.tables.pairs import hub_table, open_pairs, table_digest, table_name

README = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train.parquet}
  - {split: test, path: en/test.parquet}
- config_name: de
  data_files: [{split: train, path: de/train.parquet}]
---
"""
WORDS = {"en/train": "one", "en/test": "two", "de/train": "eins"}
COLUMNS = {"query": "anchor", "target": "positive"}


def rows(word):
    return [{"anchor": f"{word} {number}", "positive": f"{number}"} for number in range(3)]


def parquet(word):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(word)), file)
    return file.getvalue()


@pytest.fixture
def pairs(hub, tmp_path, monkeypatch):
    """A repository of two configs, one of which has two splits."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    hub_table.cache_clear()
    files = {f"{name}.parquet": parquet(word) for name, word in WORDS.items()}
    hub.create("org/pairs", **{"README.md": README, **files})
    yield hub
    hub_table.cache_clear()


def test_a_config_and_a_split(pairs):
    assert open_pairs("org/pairs:en/train", COLUMNS)["query"][1] == {"text": "one 1"}
    assert open_pairs("org/pairs:de", COLUMNS)["query"][2] == {"text": "eins 2"}
    assert len(open_pairs("org/pairs:en/test", COLUMNS)) == 3


def test_what_is_not_said_is_asked_for(pairs):
    with pytest.raises(ValueError, match="say which split: org/pairs:en/train, org/pairs:en/test"):
        open_pairs("org/pairs:en")
    with pytest.raises(ValueError, match=r"org/pairs: there is no such file .* \['en', 'de'\]"):
        open_pairs("org/pairs")
    with pytest.raises(ValueError, match="org/none: there is no such file or folder, and as a table of the Hub"):
        open_pairs("org/none")


def test_a_commit_is_a_table(pairs):
    first = pairs.head("org/pairs")
    before = table_digest("org/pairs:de")
    assert table_name("org/pairs:de") == f"org/pairs@{first}:de/train"
    pairs.change("org/pairs", **{"de/train.parquet": parquet("zwei")})
    assert table_digest("org/pairs:de") == before  # of one process, all of one commit
    hub_table.cache_clear()
    assert table_digest("org/pairs:de") != before
    assert open_pairs("org/pairs:de", COLUMNS)["query"][0] == {"text": "zwei 0"}
    assert open_pairs(f"org/pairs@{first}:de", COLUMNS)["query"][0] == {"text": "eins 0"}
    assert table_digest(f"org/pairs@{first}:de") == before
