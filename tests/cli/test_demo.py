"""`mmemb-r1 demo` says what it needs before anything is loaded, and takes the pictures of Atlas with their names."""

from __future__ import annotations

import pytest

from mmemb_r1.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "--index DIR, or --model DIR and --atlas DIR"), (["--atlas", "here"], "by which --model DIR")],
)
def test_what_is_missing_is_told(arguments, told, capsys):
    assert main(["demo", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_it_listens_to_this_computer_only_by_default(monkeypatch, tmp_path):
    import mmemb_r1.demo.page as page
    import mmemb_r1.index

    served = []
    monkeypatch.setattr(page, "gradio", lambda: None)
    monkeypatch.setattr(page, "build_page", lambda index, title: (index, title))
    monkeypatch.setattr(page, "serve", lambda shown, *options, **others: served.append((shown, *options, others)))
    monkeypatch.setattr(mmemb_r1.index.Index, "open", lambda folder, model, device: folder)
    assert main(["demo", "--index", str(tmp_path / "mine")]) == 0
    assert served == [((str(tmp_path / "mine"), "mmemb-r1: mine"), "127.0.0.1", None, {"inbrowser": False})]
