"""`mmemb-r1 pull`: download a checkpoint from the Hub."""

from __future__ import annotations

import argparse

HELP = """\
Download a checkpoint from the Hugging Face Hub at one commit, check every file against the hash that the repository
lists, and print the lines that load just that commit. Nothing of it is run. Files that are not of a checkpoint,
pickles among them, are left out and named.

A private repository needs the token of `hf auth login`, or HF_TOKEN. The same command resumes a pull that was cut
short."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository")
    parser.add_argument("--revision", metavar="REV", help="branch, tag, commit or pull request; default: main")
    parser.add_argument("--code-revision", metavar="REV", help="where the *.py files come from; default: --revision")
    parser.add_argument("--output", metavar="DIR", help="a new or empty folder; default: the Hub's cache")


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.hub import pull_checkpoint

    pulled = pull_checkpoint(
        args.repo_id, revision=args.revision, code_revision=args.code_revision, output=args.output
    )
    print(f"{pulled.repo_id} at {pulled.commit}, verified")
    if pulled.code_commit:
        print(f"code at {pulled.code_commit}, verified")
    for name in pulled.left_out:
        print(f"left out {name}, which is not a file of a checkpoint")
    print(f"in {pulled.folder}")
    code = f', model_kwargs={{"code_revision": "{pulled.code_commit}"}}' if pulled.code_commit else ""
    pinned = f'"{pulled.repo_id}", revision="{pulled.commit}"'
    print(f"MMEmbR1({pinned})\nSentenceTransformer({pinned}, trust_remote_code=True{code})")
    return 0
