"""The report is well-formed, says what the run's files say, loads nothing, and shows data as text."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mmemb_r1.evaluation.report.html import render_html, write_html
from mmemb_r1.evaluation.run_folder import COLUMNS, RESULTS_FILE, rows_path, save_results, write_columns
from mmemb_r1.evaluation.runner import interval_ends, summarise_tasks

VOID = {"meta", "br", "link", "img", "input", "hr"}
ATLAS = {
    "fact-capital": {"complexity": "simple"},
    "fact-flag": {"complexity": "simple"},
    "flag-capital": {"complexity": "multi-hop"},
}
MMEB = {
    "ImageNet-1K": {"modality": "image", "meta_task": "image/classification"},
    "MSR-VTT": {"modality": "video", "meta_task": "video/retrieval"},
    "CIRR": {"modality": "image", "meta_task": "image/retrieval"},
    "ViDoRe_arxivqa": {"modality": "visdoc", "meta_task": "visdoc/vidore-v1"},
}
NASTY = "<script>alert('1')<b onclick=\"x\"> & $x_1$"


class Page(HTMLParser):
    """Elements as (tag, attributes), the text, the cells of every table row, and whether all that opens closes."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.texts, self.rows, self.svg_texts = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "text":
            self.svg_texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)

    def cells(self, first):
        """The cells of all rows that begin with this one."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return [row for row in rows if row[0] == first]


def write_run(
    folder,
    tasks=None,
    modes=("never", "always", "auto"),
    *,
    queries=40,
    gate=True,
    timed=True,
    rationale="because it is",
    aligned=True,
    stray=False,
    **more,
):
    rng = np.random.default_rng(0)
    entries, rows = {}, {}
    for name, groups in (tasks or ATLAS).items():
        hit = {"never": rng.random(queries) < 0.4, "always": rng.random(queries) < 0.7}
        alignment = {"never": rng.random(queries), "always": rng.random(queries)}
        prob, tokens = rng.random(queries), rng.integers(3, 20, queries)
        entries[name] = {"metric": "hit@1", "groups": groups, "n": queries, "candidates": 12, "modes": {}}
        rows[name] = {}
        for mode in modes:
            reasoned = {"never": prob < 0, "always": prob >= 0, "auto": prob >= 0.5}[mode]
            score = np.where(reasoned, hit["always"], hit["never"]).astype(float)
            if stray and mode == "auto":
                score[0] = 1 - score[0]
            rows[name][mode] = one = {
                "query_id": np.array([f"{name}/{row}" for row in range(queries)], object),
                "cluster": np.array([f"c{row % 9}" for row in range(queries)], object),
                "score": score,
                "rank": np.where(score == 1, 1, 5),
                "margin": np.zeros(queries),
                "alignment": np.where(reasoned, alignment["always"], alignment["never"]),
                "gate_prob": prob if gate else np.full(queries, np.nan),
                "reasoned": reasoned,
                "num_reasoning_tokens": np.where(reasoned, tokens, 0),
                "num_reasoning_rounds": reasoned.astype(int),
                "rationale": np.array([rationale if thought else None for thought in reasoned], object),
                "query_text": np.array(["which one?"] * queries, object),
            }
            write_columns(rows_path(folder, name, mode), one, COLUMNS)
            entries[name]["modes"][mode] = {
                "score": float(score.mean()),
                "interval": interval_ends(score, one["cluster"]),
                "invocation_ratio": float(reasoned.mean()),
                "mean_reasoning_tokens": float(one["num_reasoning_tokens"].mean()),
                "seconds_per_query": (0.01 if mode == "never" else 0.03) if timed else None,
            }
    config = {"model": "tiny", "dataset": "Atlas", "split": "test", "modes": list(modes), "batch_size": 8}
    config |= {"checkpoint": "0123456789abcdef", "date": "2025-11-26T11:58:03+00:00", "versions": {"torch": "2.9"}}
    results = {"format": 2, "config": config, "tasks": entries, "summary": summarise_tasks(entries, rows)}
    results |= {name: value for name, value in more.items() if name != "config"}
    results["config"] |= more.get("config", {})
    save_results(results, folder / RESULTS_FILE)
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, write_run(folder)


@pytest.fixture(scope="module")
def source(run):
    return render_html(run[0])


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


class TestPage:
    def test_is_well_formed_and_its_ids_are_its_own(self, page):
        assert [tag for tag, _ in page.elements[:2]] == ["html", "head"]
        ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert len(set(ids)) == len(ids) > 5
        used = [attrs["xlink:href"] for tag, attrs in page.elements if tag == "use"]
        assert used and {name.removeprefix("#") for name in used} <= set(ids)

    def test_headings_and_regions_have_names(self, page):
        assert page.count("h1") == 1
        labels = [attrs["aria-labelledby"] for tag, attrs in page.elements if tag == "section"]
        assert labels and set(labels) <= {attrs["id"] for tag, attrs in page.elements if tag == "h2"}
        assert all(attrs.get("aria-label") for tag, attrs in page.elements if tag == "svg")

    def test_loads_nothing(self, source, page):
        assert not {"script", "link", "img", "iframe", "object", "embed", "image"} & {tag for tag, _ in page.elements}
        for _, attrs in page.elements:
            for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert attrs.get(name, "#").startswith("#")
        assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", source))
        assert "@import" not in source

    def test_colours_are_those_of_the_style_sheet(self, source):
        assert "#0101" not in source
        style = source[source.index("<style>") : source.index("</style>")]
        for name in set(re.findall(r"var\(--([a-z-]+)\)", source)):
            assert style.count(f"--{name}:") == 2, "one for the light scheme, one for the dark one"

    def test_a_run_gives_the_same_page_again(self, run, source, tmp_path):
        write_html(run[0], tmp_path / "new" / "report.html")
        assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == source


class TestContent:
    def test_the_header(self, page):
        for part in (
            "tiny",
            "0123456789ab…",
            "Atlas · test",
            "120 in 3 tasks",
            "2025-11-26 11:58:03 UTC",
            "torch 2.9",
        ):
            assert part in page.text

    def test_tables_hold_the_numbers_of_the_results(self, run, page):
        _, results = run
        for name, entry in {**results["tasks"], "simple": results["summary"]["simple"]}.items():
            (cells,) = [row for row in page.cells(name) if len(row) > 10 and row[1] in ("hit@1", "2")]
            for mode, numbers in entry["modes"].items():
                low, high = numbers["interval"]
                assert f"{numbers['score']:.3f} {low:.3f}–{high:.3f}" in cells, (name, mode)
            assert f"{100 * entry['modes']['auto']['invocation_ratio']:.1f} %" in cells
            assert {"10.0", "30.0"} <= set(cells)  # milliseconds

    def test_every_task_is_in_the_table_and_in_a_plot(self, run, page):
        for name in run[1]["tasks"]:
            assert len(page.cells(name)) == 1
            assert page.svg_texts.count(name) == 1

    def test_plots(self, page):
        labels = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
        for group in ("All tasks", "simple", "multi-hop"):
            for kind in ("Score over the share", "Score over time", "Histogram"):
                assert sum(label.startswith(kind) and label.endswith(group) for label in labels) == 1
        assert sum(label.startswith("Scores per task") for label in labels) == 2

    def test_the_curve_as_numbers_has_both_ends(self, run, page):
        means = run[1]["summary"]["all"]["modes"]
        (first,) = page.cells("none")
        assert first[1] == "0.0 %"
        assert first[2].startswith(f"{means['never']['score']:.3f} ")
        assert first[6] == "10.0"

    def test_examples(self, page):
        assert page.count("article") == 3
        assert "because it is" in page.text
        assert "which one?" in page.text
        assert "rank of the right candidate" in page.text

    def test_differences_of_auto_are_told(self, page, tmp_path):
        assert "Differences." not in page.text
        write_run(tmp_path, stray=True)
        assert "For 3 of 120 queries the score of auto is not" in Page(render_html(tmp_path)).text


class TestWhatThereIs:
    def test_never_alone(self, tmp_path):
        write_run(tmp_path, modes=("never",), gate=False, rationale=None)
        page = Page(render_html(tmp_path))
        assert "Left out:" in page.text
        assert "and this one lacks always" in page.text
        assert page.count("svg") == 2  # the tasks
        assert page.count("article") == 0
        assert "Random gate" not in page.text

    def test_auto_was_not_run(self, tmp_path):
        write_run(tmp_path, modes=("never", "always"))
        page = Page(render_html(tmp_path))
        assert "auto was not run" in page.text
        assert "captured" not in [cell for row in page.rows for cell in row]
        assert page.cells("none")  # the curve needs the gate's probabilities alone

    def test_no_gate_and_no_times(self, tmp_path):
        write_run(tmp_path, gate=False, timed=False)
        page = Page(render_html(tmp_path))
        assert "No gate probability was recorded" in page.text
        assert "no time was measured" in page.text
        heads = [cell for row in page.rows for cell in row]
        assert "gate AUC" not in heads
        assert "ms" not in heads
        assert page.cells("none") == []

    def test_mmeb_in_order_of_its_groups(self, tmp_path):
        write_run(tmp_path, MMEB, overall={"never": 0.4321, "always": 0.7, "auto": 0.71})
        page = Page(render_html(tmp_path))
        assert "Overall, the mean of all 78 tasks: never 0.432, always 0.700, auto 0.710." in page.text
        firsts = [" ".join(row[0].split()) for row in page.rows if row]
        groups = ["All tasks", "image", "image/classification", "image/retrieval", "video", "video/retrieval"]
        assert [name for name in firsts if name in groups][:6] == groups
        assert [name for name in firsts if name in MMEB] == ["ImageNet-1K", "CIRR", "MSR-VTT", "ViDoRe_arxivqa"]

    def test_an_overall_that_is_refused(self, tmp_path):
        write_run(tmp_path, MMEB, modes=("never",), overall={"refused": "4 of the 78 tasks were run"})
        page = Page(render_html(tmp_path))
        assert "No overall score of the benchmark. 4 of the 78 tasks were run" in page.text

    def test_a_large_group_is_cut_into_plots_of_equal_height(self, tmp_path):
        write_run(tmp_path, {f"task-{row}": {} for row in range(43)}, modes=("never",), queries=3)
        page = Page(render_html(tmp_path))
        labels = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
        assert labels == ["Scores per task: All tasks", *["Scores per task: All tasks, continued"] * 2]
        assert sorted(text for text in page.svg_texts if text.startswith("task-")) == sorted(
            f"task-{row}" for row in range(43)
        )


class TestEscaping:
    def test_data_stay_text(self, tmp_path):
        tasks = {NASTY: {"complexity": "<i>simple</i>"}, "plain": {"complexity": "multi-hop"}}
        config = {"model": NASTY, "dataset": NASTY, "versions": {NASTY: "1"}, "checkpoint": NASTY}
        write_run(tmp_path, tasks, rationale=f"{NASTY}\n</style></svg>", config=config, overall={"refused": NASTY})
        page = Page(render_html(tmp_path))
        assert page.count("script") == 0
        assert page.count("style") == 1
        assert "onclick" not in {name for _, attrs in page.elements for name in attrs}
        assert ("dd", {"title": NASTY}) in page.elements
        assert "<i>simple</i>" in page.svg_texts
        assert len(page.cells(NASTY)) == 1
        assert NASTY in page.svg_texts  # dollars are dollars
        assert f"{NASTY} </style></svg>" in page.text

    def test_long_thoughts_are_cut(self, tmp_path):
        write_run(tmp_path, {"plain": {}}, rationale="word " * 1000)
        assert 100 < Page(render_html(tmp_path)).text.count("word") < 130


class TestErrors:
    def test_no_results(self, tmp_path):
        with pytest.raises(ValueError, match=r"results.json is missing: a report is written of the folder"):
            write_html(tmp_path, tmp_path / "report.html")

    @pytest.mark.parametrize("mode", ["never", "always", "auto"])
    def test_missing_rows_are_named(self, tmp_path, mode):
        write_run(tmp_path)
        rows_path(tmp_path, "fact-flag", mode).unlink()
        with pytest.raises(ValueError, match=rf"fact-flag.{mode}\.parquet .*evaluate again"):
            write_html(tmp_path, tmp_path / "report.html")
        assert not (tmp_path / "report.html").exists()

    def test_modes_of_other_queries(self, tmp_path):
        write_run(tmp_path)
        write_run(tmp_path / "other", queries=41)
        rows_path(tmp_path / "other", "fact-flag", "always").replace(rows_path(tmp_path, "fact-flag", "always"))
        with pytest.raises(ValueError, match="never and always are not of the same queries; 1 are in one of them"):
            render_html(tmp_path)

    @pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
    def test_what_draws_is_missing(self, run, package, monkeypatch):
        real = builtins.__import__

        def refuse(name, *args, **kwargs):
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ImportError, match=rf"needs {package}: pip install 'mmemb-r1\[eval\]'"):
            render_html(run[0])
