"""`mmemb-r1 push`: upload a checkpoint to the Hub."""

from __future__ import annotations

import argparse

HELP = """\
Push a checkpoint to a repository on the Hugging Face Hub, in one commit, so that the repository holds what the folder
holds. The folder is checked first: it has to be complete, with its code and card, and hold only files of a checkpoint,
so no pickles, and no secrets.

The token is that of `hf auth login`, or HF_TOKEN. The same command resumes a push that was cut short. Until then no
branch of the repository has changed; a new repository exists already, without the checkpoint."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the checkpoint, a folder")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository; created if there is none")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, or pull request to add to; default: main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument(
        "--message", default="Push checkpoint", metavar="TEXT", help="of the commit; default: 'Push checkpoint'"
    )


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.hub import push_checkpoint

    pushed = push_checkpoint(
        args.folder,
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
    )
    if not pushed.changed and not pushed.deleted:
        print(f"{args.repo_id} holds this checkpoint already, at {pushed.commit}: no commit was made")
    else:
        print(f"pushed to {args.repo_id}: {len(pushed.changed)} files changed, {len(pushed.deleted)} deleted")
        for name in pushed.deleted:
            print(f"deleted {name}")
    if pushed.pull_request:
        print(f"pull request: {pushed.pull_request}")
    print(f'MMEmbR1("{args.repo_id}", revision="{pushed.commit}")')
    return 0
