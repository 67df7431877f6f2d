"""The visual-document annotations: pages inside of Parquet files and beside them, grades, languages."""

from __future__ import annotations

from io import BytesIO

import pyarrow.parquet
import pytest
from PIL import Image


def corpus_file(copy, name):
    return next(copy.dataset(name).glob("corpus/*.parquet"))


def test_beir(copy, miniature):
    miniature("ViDoSeek-page-fixed")
    task = copy.load("ViDoSeek-page-fixed")
    assert task.query_ids == ["0", "1", "2"]
    assert task.queries[1] == {"text": "question 1"}
    # above 0 alone, and of two grades the higher
    assert task.relevance == [{"0": 1.0, "1": 2.0}, {"1": 2.0}, {"3": 1.0}]
    assert task.candidate_ids == ["0", "1", "2", "3", "4"]
    assert task.pools is None
    assert task.query_prompt == "Find a document image that matches the given query:"
    assert task.candidate_prompt == "Understand the content of the provided document image."


@pytest.mark.parametrize("name", ["ViDoSeek-doc", "VisRAG_PlotQA"])
def test_pages_are_the_same_inside_and_beside_the_corpus(name, copy, miniature):
    miniature(name)
    task = copy.load(name)
    inside = dict(zip(task.candidate_ids, task.candidates, strict=True))
    miniature(name, pages_inside=False)
    task = copy.load(name)
    beside = dict(zip(task.candidate_ids, task.candidates, strict=True))
    assert list(inside) == list(beside)
    for one, page in inside.items():
        pixels = [
            Image.open(file).convert("L").getpixel((0, 0)) for file in (BytesIO(page["image"]), beside[one]["image"])
        ]
        assert pixels[0] == pytest.approx(pixels[1], abs=1)  # those of VisRAG are JPEG


def test_pages_are_a_sequence_over_row_groups(copy, miniature):
    miniature("ViDoSeek-doc")
    pages = copy.load("ViDoSeek-doc").candidates
    one_by_one = [pages[place] for place in range(5)]
    assert pyarrow.parquet.read_metadata(corpus_file(copy, "ViDoSeek-doc")).num_row_groups == 3
    assert len(pages) == 5 and list(pages) == one_by_one
    assert [pages[place] for place in (4, 0, 3, -1)] == [one_by_one[place] for place in (4, 0, 3, 4)]
    assert pages[1:4] == one_by_one[1:4]
    assert len({page["image"] for page in one_by_one}) == 5
    with pytest.raises(IndexError):
        pages[5]


def test_pages_are_read_when_they_are_asked_for(copy, miniature):
    miniature("ViDoSeek-doc")
    task = copy.load("ViDoSeek-doc")
    corpus_file(copy, "ViDoSeek-doc").unlink()
    with pytest.raises(FileNotFoundError):
        task.candidates[0]


def test_a_language(copy, miniature):
    miniature("ViDoRe_esg_reports_v2")
    miniature("ViDoRe_esg_reports_v2_multilingual")  # the same dataset, with three of the queries
    miniature("ViDoRe_esg_reports_v2")
    assert copy.load("ViDoRe_esg_reports_v2").query_ids == ["0", "1", "3"]
    assert copy.load("ViDoRe_esg_reports_v2_multilingual").query_ids == ["0", "1", "2", "3"]


def test_queries_with_the_same_pages_are_one_cluster(copy, miniature):
    miniature("ViDoSeek-doc")
    qrels = [{"query-id": query, "corpus-id": page, "score": 1} for query, page in ((0, 1), (1, 1), (2, 2))]
    copy.rows("ViDoSeek-doc", qrels, "qrels")
    clusters = copy.load("ViDoSeek-doc").clusters
    assert clusters[0] == clusters[1] != clusters[2]


def test_old_and_fixed_pages_do_not_share_a_folder(copy, miniature):
    miniature("ViDoSeek-page", pages_inside=False)
    miniature("ViDoSeek-page-fixed", pages_inside=False)
    old, fixed = (copy.load(name).candidates[0]["image"] for name in ("ViDoSeek-page", "ViDoSeek-page-fixed"))
    assert old != fixed


def test_a_missing_page_beside_the_corpus_is_named(copy, miniature):
    task = miniature("VisRAG_PlotQA", pages_inside=False)
    file = sorted((copy.root / task.media).iterdir())[0]
    assert len(file.stem) == 59  # fifty characters of the id, and eight that tell it from others
    file.unlink()
    with pytest.raises(ValueError, match=f"VisRAG_PlotQA: the picture {file} is missing"):
        copy.load("VisRAG_PlotQA")


def rewrite(copy, name, statistics=True, **columns):
    file = corpus_file(copy, name)
    table = pyarrow.parquet.read_table(file)
    for column, values in columns.items():
        column = column.replace("_", "-")
        place = table.column_names.index(column)
        table = table.set_column(place, column, pyarrow.array(values, table.schema.field(column).type))
    pyarrow.parquet.write_table(table, file, row_group_size=2, write_statistics=statistics)
    return file


@pytest.mark.parametrize("gap", [None, {"bytes": None, "path": None}])
def test_a_page_without_a_picture_is_named(gap, copy, miniature):
    miniature("ViDoSeek-doc")
    images = pyarrow.parquet.read_table(corpus_file(copy, "ViDoSeek-doc"))["image"].to_pylist()
    images[3] = gap
    file = rewrite(copy, "ViDoSeek-doc", image=images)
    with pytest.raises(ValueError, match=f"ViDoSeek-doc: pages in {file} are missing"):
        copy.load("ViDoSeek-doc")
    rewrite(copy, "ViDoSeek-doc", statistics=False, image=images)
    pages = copy.load("ViDoSeek-doc").candidates
    with pytest.raises(ValueError, match=f"ViDoSeek-doc: row 3 of the corpus in {file} has no picture"):
        list(pages)


def test_pages_that_stand_twice(copy, miniature):
    miniature("ViDoSeek-doc")
    images = pyarrow.parquet.read_table(corpus_file(copy, "ViDoSeek-doc"))["image"].to_pylist()
    rewrite(copy, "ViDoSeek-doc", corpus_id=[0, 1, 3, 3, 4], image=[*images[:2], images[3], *images[3:]])
    task = copy.load("ViDoSeek-doc")
    assert task.candidate_ids == ["0", "1", "3", "4"]
    assert [page["image"] for page in task.candidates] == [images[place]["bytes"] for place in (0, 1, 3, 4)]
    assert task.data["merged_candidates"] == 1
    assert "odd_rows" not in task.data
    rewrite(copy, "ViDoSeek-doc", image=images)  # another page has the id of the one before
    task = copy.load("ViDoSeek-doc")
    assert [page["image"] for page in task.candidates] == [images[place]["bytes"] for place in (0, 1, 2, 4)]
    assert task.data["odd_rows"] == {"several pages have this id: the first of them counts": 1}


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        ("qrels", [(0, 0, 1), (1, 1, 1), (2, 9, 1)], "query 2: the page '9' that is relevant .* not in the corpus"),
        ("queries", [(0, "a"), (0, "b")], "query 0: another query has the same id"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_each_other_are_refused(config, rows, message, copy, miniature):
    miniature("ViDoSeek-doc")
    columns = ("query-id", "query") if config == "queries" else ("query-id", "corpus-id", "score")
    copy.rows("ViDoSeek-doc", [dict(zip(columns, row, strict=True)) for row in rows], config)
    with pytest.raises(ValueError, match=f"ViDoSeek-doc, {message}"):
        copy.load("ViDoSeek-doc")


def test_a_corpus_in_another_format_is_refused(copy, miniature):
    miniature("ViDoSeek-doc")
    corpus_file(copy, "ViDoSeek-doc").unlink()
    copy.rows("ViDoSeek-doc", [{"corpus-id": 0}], "corpus", suffix=".json")
    with pytest.raises(ValueError, match=r"ViDoSeek-doc: the corpus .*\.json is no Parquet file"):
        copy.load("ViDoSeek-doc")


@pytest.mark.parametrize("config", ["corpus", "queries"])
def test_a_file_that_is_cut_is_named(config, copy, miniature):
    miniature("ViDoSeek-doc")
    file = next(copy.dataset("ViDoSeek-doc").glob(f"{config}/*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"ViDoSeek-doc: {file} can't be read .* Copy it from VLM2Vec/ViDoSeek again"):
        copy.load("ViDoSeek-doc")
