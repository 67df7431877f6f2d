from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from mmemb_r1.evaluation import load_results
from mmemb_r1.fingerprint import folder_digest
from mmemb_r1.model_card import build_model_card, validate_model_card, write_model_card

FACTS = {
    "phase": "joint",
    "started from weights": "0123abcd",
    "pairs": 12,
    "tasks": "color 0.5, shape 0.5",
    "rationales": "9 selected ones, for 7 of the 12 pairs",
    "learning rate": 1e-05,
    "steps": 3,
    "log": [{"loss": 2.0}],
    "measured": {"seconds": 1.0},
}


def headings(text):
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def cells(text, first):
    """The row of a table that begins with this cell."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


ALWAYS = ["Use", "Intended use", "Limits", "Citation"]


class TestMetadata:
    def test_is_what_the_hub_expects(self, tiny_checkpoint, results):
        text = build_model_card(
            tiny_checkpoint,
            results,
            base_model="some/backbone",
            training={"steps": 3},
            license="apache-2.0",
            datasets=["some/pairs", "more/pairs"],
        )
        card = ModelCard(text)
        assert card.data.library_name == "sentence-transformers"
        assert card.data.pipeline_tag == "feature-extraction"
        assert (card.data.base_model, card.data.license) == ("some/backbone", "apache-2.0")
        assert card.data.datasets == ["some/pairs", "more/pairs"]
        assert {"multimodal", "sentence-transformers"} <= set(card.data.tags)
        assert "| base model | some/backbone |" in text
        assert "| steps | 3 |" in text
        validate_model_card(text, tiny_checkpoint)

    def test_the_model_index_holds_the_means_of_the_file(self, tiny_checkpoint, results):
        card = ModelCard(build_model_card(tiny_checkpoint, results))
        found = {(one.dataset_config, one.metric_name): one.metric_value for one in card.data.eval_results}
        summary = load_results(results)["summary"]
        assert found == {
            (group, f"hit@1, reasoning={mode}"): round(summary[group]["modes"][mode]["hit@1"], 4)
            for group in ("simple", "all")
            for mode in ("never", "always")
        }
        assert {one.dataset_split for one in card.data.eval_results} == {"test"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"license": "Apache 2.0"}, r"license is 'Apache 2.0'; allowed: .*apache-2.0"),
            ({"base_model": "/models/mine"}, r"base_model is '/models/mine'; allowed: ids of the Hub"),
            ({"datasets": ["a/b/c"]}, r"datasets is 'a/b/c'; allowed: ids of the Hub"),
            ({"repo_id": "name"}, r"repo_id is 'name'; allowed: .*org/name"),
            ({"emissions": -1.0}, r"emissions: the number of grams is -1.0; allowed"),
        ],
    )
    def test_what_the_hub_would_not_know_is_refused(self, tiny_checkpoint, options, message):
        with pytest.raises(ValueError, match=message):
            build_model_card(tiny_checkpoint, **options)

    def test_refuses_a_folder_without_a_checkpoint(self, tmp_path):
        with pytest.raises(ValueError, match="holds no checkpoint"):
            build_model_card(tmp_path)


class TestSections:
    def test_what_is_not_known_is_left_out(self, tiny_checkpoint):
        text = build_model_card(tiny_checkpoint)
        card = ModelCard(text)
        known = (card.data.license, card.data.base_model, card.data.datasets, card.data.eval_results)
        assert known == (None, None, None, None)
        assert headings(text) == ALWAYS
        assert "No evaluation is reported here" in text
        assert "How it was trained is not recorded here" in text
        assert not re.search(r"\bNone\b|\$\w|nan|\n\n\n", text)
        validate_model_card(text, tiny_checkpoint)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("training", ["Training data and selection", "Training"]),
            ("results", ["Results", "Cost of a query"]),
            ("curve", ["Invocation curve"]),
            ("emissions", ["Carbon"]),
            ("datasets", ["Training data and selection"]),
        ],
    )
    def test_each_is_there_if_its_source_is(self, tiny_checkpoint, results, sweep, emissions, name, expected):
        sources = {
            "training": FACTS,
            "results": results,
            "curve": sweep,
            "emissions": emissions,
            "datasets": ["some/pairs"],
        }
        text = build_model_card(tiny_checkpoint, **{name: sources[name]})
        assert headings(text) == [*ALWAYS[:-1], *expected, "Citation"]

    def test_scores_have_their_intervals_and_what_was_not_timed_has_no_time(self, tiny_checkpoint, newer_results):
        text = build_model_card(tiny_checkpoint, newer_results)
        shown = cells(text, "fact-capital")
        assert shown[4:6] == ["0.125 [0.062, 0.125]", "0.062 [0.031, 0.062]"]
        assert "In brackets, 95 % intervals that draw whole clusters of queries." in text
        assert "mean over the queries of each task's metric, hit@1 or ndcg_linear@5" in text
        assert 'Answers are embedded with reasoning="auto"' in text
        (never,) = [line for line in text.splitlines() if line.startswith("| never |")]
        assert never == "| never | 0% | 0.0 |  | 0.188 |"
        assert "times as long" not in text
        metrics = {one.metric_name: one.metric_value for one in ModelCard(text).data.eval_results}
        assert metrics == {"score, reasoning=never": 0.1875, "score, reasoning=always": 0.4062}
        validate_model_card(text, tiny_checkpoint)

    def test_files_of_the_checkpoint_are_found(self, checkpoint, results, sweep):
        (checkpoint / "results.json").write_bytes(results.read_bytes())
        (checkpoint / "training.json").write_text(json.dumps(FACTS))
        (checkpoint / "curve-test.csv").write_bytes(sweep.read_bytes())
        given = build_model_card(checkpoint, results, training=FACTS, curve=checkpoint / "curve-test.csv")
        assert build_model_card(checkpoint) == given
        assert len(headings(given)) == len(ALWAYS) + 5

    def test_arguments_override_files(self, checkpoint):
        (checkpoint / "training.json").write_text(json.dumps(FACTS))
        text = build_model_card(checkpoint, training={"steps": 99})
        assert cells(text, "steps") == ["99"]
        assert "color 0.5" not in text

    def test_facts_are_those_of_the_checkpoint(self, tiny_checkpoint):
        from mmemb_r1 import MMEmbR1

        text = build_model_card(tiny_checkpoint)
        model = MMEmbR1(str(tiny_checkpoint), device="cpu")
        assert cells(text, "embedding dimensions") == [str(model.get_embedding_dimension())]
        assert cells(text, "parameters") == [f"{sum(weight.numel() for weight in model.parameters()):,}"]
        assert cells(text, "architecture") == ["qwen3_vl"]
        assert "| base model |" not in text and "- Not stated: licence, languages, base model." in text
        assert cells(text, "rationale budget") == ["8 tokens, 1 round at most"]

    def test_videos_are_offered_if_the_processor_takes_them(self, checkpoint):
        assert "text, images, videos and any mix" in build_model_card(checkpoint)
        path = checkpoint / "processor_config.json"
        processor = json.loads(path.read_text())
        del processor["video_processor"]
        path.write_text(json.dumps(processor))
        text = build_model_card(checkpoint)
        assert "text, images and any mix" in text
        assert "`text`, `image` and `instruction`" in text

    def test_training(self, tiny_checkpoint):
        text = build_model_card(tiny_checkpoint, training={**FACTS, "odd": "a|b\nc"}, datasets=["some/pairs"])
        data, how = text.split("## Training data and selection")[1].split("## Training\n")
        for name in ("pairs", "tasks", "rationales"):
            assert cells(data, name) == [str(FACTS[name])]
        assert cells(data, "datasets") == ["[some/pairs](https://huggingface.co/datasets/some/pairs)"]
        for name in ("phase", "started from weights", "learning rate", "steps"):
            assert cells(how, name) == [str(FACTS[name])]
        assert "| odd | a\\|b c |" in how
        assert "loss" not in how and "measured" not in how
        assert "How it was trained is not recorded" not in text
        assert "What was trained before the first phase recorded here is not recorded." in text

    def test_results(self, tiny_checkpoint, results):
        text = build_model_card(tiny_checkpoint, results)
        section = text.split("## Results")[1].split("## Cost")[0]
        assert "Atlas, test split, 1,616 queries of 2 tasks" in section
        assert cells(section, "picture-name") == ["16", "40", "0.125", "0.500", "0.250", "0.750"]
        assert cells(section, "fact-capital") == ["1600", "40", "0.125", "", "0.125", "0.062"]
        assert cells(section, "**mean: all**") == ["1616", "", "", "", "0.188", "0.406"]

    @pytest.mark.parametrize(
        ("config", "data", "named", "index"),
        [
            ({}, None, "dataset not recorded", None),
            ({"dataset": "Atlas"}, None, "dataset not recorded", None),
            ({"dataset": "atlas"}, {"digest": "00"}, "dataset not recorded", None),
            ({"dataset": "Atlas", "reader": "own:read"}, {}, "dataset not recorded, read by own:read", None),
            ({"dataset": "my pairs.parquet"}, {"digest": "00"}, "my pairs.parquet", "my-pairs.parquet"),
            ({"dataset": "x", "limit": 9}, None, "x, the first 9 queries of each task", "x"),
            (
                {"dataset": "Atlas", "split": "test"},
                {"dataset": "Atlas", "content": "1"},
                "Atlas, test split",
                "atlas",
            ),
        ],
    )
    def test_a_dataset_is_called_what_the_results_prove(self, tiny_checkpoint, results, config, data, named, index):
        content = load_results(results)
        content["config"] = {"modes": ["never", "always"], **config}
        for task in content["tasks"].values():
            task.pop("data")
            task |= {} if data is None else {"data": data}
        results.write_text(json.dumps(content))
        text = build_model_card(tiny_checkpoint, results)
        assert text.count(f"{named}, 1,616 queries of 2 tasks") == 2
        assert f"Weak tasks ({named})" in text
        found = ModelCard(text).data.eval_results
        assert (None if found is None else {one.dataset_type for one in found}) == (index and {index})
        assert ("Atlas" in text) == named.startswith("Atlas")

    def test_results_of_other_files_are_not_shown(self, checkpoint, results, caplog):
        content = load_results(results)
        content["config"]["files"] = folder_digest(checkpoint)
        results.write_text(json.dumps(content))
        write_model_card(checkpoint, results)
        assert "## Results" in (checkpoint / "README.md").read_text()
        settings = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**settings, "gate_threshold": 0.25}))
        with pytest.raises(ValueError, match="measured another checkpoint than .* evaluate it: mmemb-r1 evaluate"):
            build_model_card(checkpoint, results)
        text = build_model_card(checkpoint)
        assert "results.json measured other files than these" in caplog.text
        assert "## Results" not in text and "- results.json beside this card measured other files" in text

    def test_what_the_text_alone_gives_is_a_baseline(self, tiny_checkpoint, results):
        assert "Text alone" not in build_model_card(tiny_checkpoint, results)
        content = load_results(results)
        content["tasks"]["picture-name"]["text_alone"] = 1.0
        results.write_text(json.dumps(content))
        text = build_model_card(tiny_checkpoint, results)
        assert "| majority | text alone | no image |" in text and "*Text alone* gives the answer" in text
        assert "picture-name" in re.search(r"- No better than.*", text)[0]

    def test_results_of_one_mode_without_baselines(self, tiny_checkpoint, results):
        content = load_results(results)
        content["config"] = {"modes": ["auto"], "dataset": "Mine"}
        for entry in [*content["tasks"].values(), *content["summary"].values()]:
            entry["modes"] = {"auto": {**entry["modes"]["always"], "invocation_ratio": 0.9999}}
            for name in ("majority", "no_image", "candidates"):
                entry.pop(name, None)
        results.write_text(json.dumps(content))
        text = build_model_card(tiny_checkpoint, results)
        assert "Mine, 1,616 queries" in text
        assert "| task | queries | auto | auto thinks on |" in text
        assert cells(text, "picture-name") == ["16", "0.750", ">99.9%"]
        assert "Majority" not in text and "With a rationale a query" not in text
        assert ModelCard(text).data.eval_results[0].dataset_type == "mine"
        validate_model_card(text, tiny_checkpoint)

    def test_cost_with_and_without_a_rationale(self, tiny_checkpoint, results):
        section = build_model_card(tiny_checkpoint, results).split("## Cost of a query")[1].split("\n## ")[0]
        assert "Atlas, test split, 1,616 queries of 2 tasks" in section
        assert "batches of 4, torch 9.9" in section
        assert cells(section, "never") == ["0%", "0.0", "4.00", "0.188"]
        assert cells(section, "always") == ["100%", "8.1", "10.0", "0.406"]
        assert "10.0 ms and 8.1 rationale tokens, without one 4.00 ms: 2.50 times as long" in section

    def test_limits_that_the_results_show(self, tiny_checkpoint, results):
        text = build_model_card(tiny_checkpoint, results)
        weak, idle = re.search(r"- Weak tasks.*", text)[0], re.search(r"- No better than.*", text)[0]
        assert "fact-capital (0.125)" in weak and "picture-name" not in weak
        assert idle.endswith(": fact-capital.")
        assert "No evaluation" not in text and "The gate chose" not in text

    @pytest.mark.parametrize(("ratio", "same"), [(0.0, "never"), (1.0, "always"), (0.5, None)])
    def test_a_gate_that_never_chooses_is_a_limit(self, tiny_checkpoint, results, ratio, same):
        content = load_results(results)
        content["config"]["modes"].append("auto")
        for entry in [*content["tasks"].values(), *content["summary"].values()]:
            entry["modes"]["auto"] = {**entry["modes"]["always"], "invocation_ratio": ratio}
        results.write_text(json.dumps(content))
        said = re.findall(r"`\"auto\"` was the same as `\"(\w+)\"`", build_model_card(tiny_checkpoint, results))
        assert said == ([same] if same else [])

    def test_curve(self, tiny_checkpoint, sweep):
        section = build_model_card(tiny_checkpoint, curve=sweep).split("## Invocation curve")[1].split("\n## ")[0]
        assert "[curve-test.csv](curve-test.csv), dataset not recorded, test split" in section
        assert "](curve-test.png)" in section
        rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
        assert [row.split(" | ")[0] for row in rows] == [f"| {share}%" for share in range(0, 101, 10)]
        assert cells(section, "0%") == ["0.400 [0.300, 0.500]", "> 1"]
        assert cells(section, "50%") == ["0.500 [0.400, 0.600]", "0.6"]

    def test_curves_of_several_models_that_say_what_they_are_of(self, tiny_checkpoint, tmp_path):
        path = tmp_path / "curve.csv"
        path.write_text(
            "model,dataset,split,queries,threshold,invocation,r1,low,high\n"
            "before,Mine,validation,20,1.1,0,0.1,0,0.2\n"
            "after,Mine,validation,20,1.1,0,0.1,0,0.2\n"
            "after,Mine,validation,20,0.999999,0.25,0.5,0.4,0.6\n"
        )
        text = build_model_card(tiny_checkpoint, curve=path)
        assert "Mine, validation split, 20 queries" in text
        assert "before: queries that think" in text and "after: queries that think" in text
        assert "|  |  |  | 25% | 0.500 [0.400, 0.600] | 0.999999 |" in text
        assert ".png" not in text.split("## Invocation curve")[1]

    def test_carbon_is_the_sum_of_the_runs(self, tiny_checkpoint, emissions):
        text = build_model_card(tiny_checkpoint, emissions=emissions)
        assert "12.5 g of CO2 equivalents, estimated by CodeCarbon (1 x Some GPU; Norway)" in text
        assert ModelCard(text).data.co2_eq_emissions == {
            "emissions": 12.5,
            "source": "CodeCarbon",
            "geographical_location": "Norway",
            "hardware_used": "1 x Some GPU",
        }
        assert "10.75" not in text and "59.94" not in text
        assert "40.0 g of CO2 equivalents, as told by who published" in build_model_card(tiny_checkpoint, emissions=40)

    def test_the_citation_is_that_of_the_repository(self, tiny_checkpoint, root):
        software = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
        (paper,) = software["references"]
        cited = build_model_card(tiny_checkpoint).split("## Citation")[1].replace("{MMEmb-R1}", "MMEmb-R1")
        authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
        assert f"title = {{{paper['title']}}}" in cited
        assert f"author = {{{' and '.join(authors)}}}" in cited
        assert f"year = {{{paper['year']}}}" in cited
        assert paper["url"] in cited and paper["identifiers"][0]["value"] in cited
        assert f"author = {{{{{software['authors'][0]['name']}}}}}" in cited
        assert f"title = {{{software['title']}: {software['abstract'].rstrip('.')}}}" in cited


class TestSnippets:
    def test_they_run(self, tiny_checkpoint, monkeypatch, capsys):
        snippets = re.findall(r"```python\n(.*?)```", build_model_card(tiny_checkpoint), flags=re.DOTALL)
        monkeypatch.chdir(tiny_checkpoint.parent)
        Image.new("RGB", (64, 64), "red").save("picture.png")
        for snippet in snippets:
            exec(compile(snippet, "model card", "exec"), {})
        shown = capsys.readouterr().out
        assert len(snippets) == 3
        assert "torch.Size([1, 32])" in shown

    def test_they_load_the_repository(self, tiny_checkpoint):
        text = build_model_card(tiny_checkpoint, repo_id="org/name")
        assert text.count('("org/name"') == 4
        assert "# org/name\n" in text
        assert tiny_checkpoint.name not in text


class TestWriting:
    def test_what_was_given_makes_the_same_card_again(self, checkpoint, results, sweep, emissions):
        path = write_model_card(
            checkpoint,
            results,
            FACTS,
            curve=sweep,
            emissions=emissions,
            license="apache-2.0",
            base_model="some/backbone",
            datasets=["some/pairs"],
            repo_id="org/name",
        )
        first = path.read_text(encoding="utf-8")
        assert path == checkpoint / "README.md"
        for name, source in {"results.json": results, "curve-test.csv": sweep}.items():
            assert (checkpoint / name).read_bytes() == source.read_bytes()
        assert (checkpoint / "curve-test.png").is_file()
        assert json.loads((checkpoint / "training.json").read_text()) == FACTS
        assert not (checkpoint / "emissions.csv").exists()
        assert len(headings(first)) == len(ALWAYS) + 6
        assert build_model_card(checkpoint, keep=True) == first
        write_model_card(checkpoint, keep=True)
        assert path.read_text(encoding="utf-8") == first

    def test_only_what_the_old_card_alone_knows_is_kept(self, checkpoint):
        header = {
            "license": "other",
            "license_name": "mine",
            "language": "en",
            "datasets": "some/pairs",
            "co2_eq_emissions": 7,
            "tags": ["old"],
            "metrics": ["old"],
            "model_name": "org/old",
        }
        (checkpoint / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n\nBy hand.\n")
        kept = ModelCard(build_model_card(checkpoint, keep=True))
        assert (kept.data.license, kept.data.license_name, kept.data.language) == ("other", "mine", "en")
        assert (kept.data.datasets, kept.data.co2_eq_emissions) == (["some/pairs"], {"emissions": 7})
        assert "old" not in kept.data.tags and "metrics" not in kept.data.to_dict() and "By hand" not in kept.text
        assert 'MMEmbR1("org/old")' in kept.text

        given = ModelCard(build_model_card(checkpoint, keep=True, license="mit", repo_id="org/new"))
        assert (given.data.license, given.data.license_name) == ("mit", None)
        assert given.data.language == "en"
        assert 'MMEmbR1("org/new")' in given.text

        fresh = build_model_card(checkpoint)
        assert ModelCard(fresh).data.license is None
        assert f'MMEmbR1("{checkpoint.name}")' in fresh

    def test_a_damaged_old_card_is_an_error(self, checkpoint):
        (checkpoint / "README.md").write_text("---\nlicense: [\n---\n")
        with pytest.raises(ValueError, match="README.md, line 2: the header is not YAML"):
            build_model_card(checkpoint, keep=True)
        (checkpoint / "README.md").write_text("---\nbase_model: ./here\n---\n")
        with pytest.raises(ValueError, match=r"base_model is './here'.*correct its header, or remove the file"):
            build_model_card(checkpoint, keep=True)

    def test_a_damaged_source_leaves_everything_as_it_was(self, checkpoint, results):
        write_model_card(checkpoint, results)
        before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        results.write_text('{"config":')
        with pytest.raises(ValueError, match="evaluation.json is not JSON"):
            write_model_card(checkpoint, results)
        assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before

    def test_a_card_shows_one_curve_and_its_own_picture(self, checkpoint, sweep):
        write_model_card(checkpoint, curve=sweep)
        other = sweep.rename(sweep.with_name("curve-validation.csv"))
        with pytest.raises(ValueError, match="holds curve-test.csv already"):
            write_model_card(checkpoint, curve=other)
        bare = sweep.parent / "bare" / "curve-test.csv"
        bare.parent.mkdir()
        bare.write_bytes(other.read_bytes())
        with pytest.raises(ValueError, match=r"curve-test.png is no picture of .*: remove it"):
            write_model_card(checkpoint, curve=bare)
        (checkpoint / "curve.csv").write_bytes(other.read_bytes())
        with pytest.raises(ValueError, match="holds 2 curves, .*: keep one of curve-test.csv, curve.csv"):
            build_model_card(checkpoint)

    def test_a_curve_of_any_name_is_found_again(self, checkpoint, sweep):
        source = sweep.rename(sweep.with_name("my sweep.csv"))
        text = write_model_card(checkpoint, curve=source).read_text(encoding="utf-8")
        assert "[curve.csv](curve.csv), dataset not recorded, split not recorded" in text
        assert build_model_card(checkpoint) == text
