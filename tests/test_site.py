"""The documentation site: its pages are whole, its links lead somewhere. `make docs` also looks at what it built."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from tests.test_docs import options_of

from mmemb_r1.cli import COMMANDS, _parser
from scripts.documentation.commands import command_pages, description, page_name, prose
from scripts.documentation.links import Page, broken_links, main, read_pages, remote_resources
from scripts.documentation.navigation import with_pages
from scripts.documentation.pages import recipes_page, write_pages
from scripts.documentation.reference import public_names

TERM = re.compile(r"^`([^`]+)`(?:\{ #(\S+) \})?\n:   (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def commands():
    return command_pages()


def shown_options(parser):
    """Options that `--help` shows of a parser and its sub-commands, but for `--help` itself."""
    hidden = {"-h", "--help"}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            hidden.update(action.option_strings)
        for inner in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            hidden |= {"--output_dir", "--output-dir"} if getattr(inner, "config", None) else set()  # set by --output
    return options_of(parser) - hidden


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_page_has_the_options_of_its_parser(commands, name):
    """Those of sub-commands and fields of configs included; each with a word about it, at a place of its own."""
    terms = TERM.findall(commands[page_name(name)])
    told = {word.rstrip(",") for term, _, _ in terms for word in term.split() if re.match(r"--?[a-z]", word)}
    parser = next(action for action in _parser([name])._actions if action.dest == "command").choices[name]
    assert told == shown_options(parser)
    assert all(text for _, _, text in terms)
    places = [place for _, place, _ in terms if place]
    assert len(places) == len(set(places)) == sum(term.startswith("-") for term, _, _ in terms)


def test_options_before_the_command_and_all_commands_are_listed(commands):
    assert {f"{page_name(name)}" for name in COMMANDS} == commands.keys() - {"index.md"}
    assert [term for term, _, _ in TERM.findall(commands["index.md"])] == ["--version", "--debug"]
    assert all(f"[`mmemb-r1 {name}`]({page_name(name)})" in commands["index.md"] for name in COMMANDS)


def test_help_texts_are_shown_as_they_are():
    """No character of a help text is taken for markup, but for code and options."""
    html = MarkdownIt().render(prose("of `a_b`, *all* <x> [1] 2 | 3, __init__ with --other-one `open"))
    assert html == (
        "<p>of <code>a_b</code>, *all* &lt;x&gt; [1] 2 | 3, __init__ with <code>--other-one</code> `open</p>\n"
    )
    lines = list(description("First\nline:\n  a   b\n    c\nand more."))
    assert lines == ["First line:", "", "    a   b", "      c", "", "and more.", ""]


def test_every_public_name_has_a_place_in_the_reference():
    from scripts.documentation.reference import reference_pages

    names, pages = public_names(), reference_pages()
    assert {"MMEmbR1", "MMEmbR1Config", "MMEmbR1Model"} == set(names["mmemb_r1"])
    assert {"Index", "build_index"} <= set(names["mmemb_r1.index"])
    assert pages.keys() == {"index.md", *(f"{package}.md" for package in names)}
    for package, members in names.items():
        shown = re.findall(r"^::: (\S+)$", pages[f"{package}.md"], re.MULTILINE)
        assert shown == [package, *(f"{package}.{member}" for member in members)]


def test_every_recipe_is_shown(root):
    text = recipes_page()
    for file in (root / "examples").glob("*.yaml"):
        assert file.read_text(encoding="utf-8").strip() in text


def test_a_folder_of_the_navigation_stands_for_its_pages(tmp_path):
    (tmp_path / "docs" / "commands").mkdir(parents=True)
    for name in ("index", "pull", "index-more", "card"):
        (tmp_path / "docs" / "commands" / f"{name}.md").touch()
    nav = [{"Home": "README.md"}, {"Reference": [{"Commands": "docs/commands/"}]}]
    pages = [f"docs/commands/{name}.md" for name in ("index", "card", "index-more", "pull")]
    assert with_pages(nav, tmp_path) == [{"Home": "README.md"}, {"Reference": [{"Commands": pages}]}]


def test_pages_lie_as_in_the_repository(root, tmp_path):
    """So that a link between documents is right on the site, too. What was in the folder before is gone."""
    (tmp_path / "pages" / "docs").mkdir(parents=True)
    (tmp_path / "pages" / "docs" / "old.md").touch()
    write_pages(tmp_path / "pages")
    staged = {file.relative_to(tmp_path / "pages").as_posix() for file in (tmp_path / "pages").rglob("*.*")}
    assert {page.relative_to(root).as_posix() for page in (root / "docs").rglob("*.md")} <= staged
    assert {"README.md", "docs/commands/search.md", "docs/commands/mmemb-r1-index.md", "site.css"} <= staged
    assert "docs/old.md" not in staged
    for folder in ("commands", "reference"):
        for page in (tmp_path / "pages" / "docs" / folder).iterdir():
            assert page.read_text(encoding="utf-8").startswith("---\nsearch:\n  boost: 0.3\n---\n\n# "), page.name
    assert "](examples/recipes.md)" in (tmp_path / "pages" / "README.md").read_text(encoding="utf-8")


def test_broken_links_and_what_comes_from_elsewhere_are_found(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.html").write_text('<article><h1 id="top">B</h1></article><a href="../a.html">back</a>')
    good = '<a href="in/b.html#top">b</a> <a href="#here" id="here">here</a> <a href="https://sbert.net">other</a>'
    (tmp_path / "a.html").write_text(good)
    assert broken_links(tmp_path) == remote_resources(tmp_path) == []
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "https://sbert.net",
        "2 pages; 3 links inside, 0 broken; 1 other sites, not followed",
    ]

    bad = '<a href="c.html">c</a><a href="in/b.html#bottom">b</a><a href="../outside.html">x</a><img src="no.png">'
    remote = '<link rel="stylesheet" href="https://example.org/a.css"><p style="background: url(//example.org/b)">'
    (tmp_path.parent / "outside.html").touch()
    (tmp_path / "a.html").write_text(good + bad + remote)
    (tmp_path / "style.css").write_text(
        "@import 'https://example.org/c.css'; a { background: url(https://example.org/d) }"
    )
    assert broken_links(tmp_path) == [
        f"a.html: {link}" for link in ("c.html", "in/b.html#bottom", "../outside.html", "no.png")
    ]
    found = ["a.html: https://example.org/a.css", "a.html: //example.org/b"]
    assert remote_resources(tmp_path) == [
        *found,
        *(f"style.css: https://example.org/{name}" for name in ("c.css", "d")),
    ]
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("broken: ") == 4


@pytest.fixture(scope="module")
def site():
    """The built site."""
    if "MMEMB_R1_SITE" not in os.environ:
        pytest.skip("the site is built by `make docs`, which runs these tests on it")
    return Path(os.environ["MMEMB_R1_SITE"])


def test_links_of_the_site_lead_somewhere(site):
    assert len(read_pages(site)) > 50
    assert broken_links(site) == []


def test_nothing_of_the_site_comes_from_elsewhere(site):
    assert remote_resources(site) == []
    pages = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.html"))
    assert (
        'class="mermaid"' not in pages and 'data-md-component="source"' not in pages
    )  # these load scripts, or ask GitHub


def test_the_site_has_a_place_for_every_public_name(site):
    for package, members in public_names().items():
        page = Page((site / "docs" / "reference" / f"{package}.html").read_text(encoding="utf-8"))
        assert {f"{package}.{member}" for member in members} <= page.places


def test_no_page_of_the_reference_shows_markup(site):
    """Types of docstrings are set in backticks there, and examples would be quotations."""
    for file in (site / "docs" / "reference").glob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "&gt;&gt;&gt;" not in text and "*optional*" not in text and "`" not in re.sub(r"<[^>]*>", "", text), (
            file.name
        )


def test_documents_look_as_they_do_elsewhere(site):
    """The site's dialect of Markdown wants a blank line before lists, for example: both show the same elements."""
    kinds = ("h1", "h2", "h3", "li", "table", "tr", "pre", "img", "blockquote")
    markdown, seen = MarkdownIt().enable("table"), 0
    for page in sorted((site.parent / "pages").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if "docs/commands" in page.as_posix() or "docs/reference" in page.as_posix():
            continue
        html = page.relative_to(site.parent / "pages").with_suffix(".html")
        built = site / (html if html.name != "README.html" else html.with_name("index.html"))
        wanted = Page(f"<article>{markdown.render(text)}</article>").elements
        found = Page(built.read_text(encoding="utf-8")).elements
        assert Counter({kind: found[kind] for kind in kinds}) == Counter({kind: wanted[kind] for kind in kinds}), page
        seen += 1
    assert seen > 20
