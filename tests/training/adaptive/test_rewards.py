from __future__ import annotations

import re
import sys
import textwrap

import pytest

from mmemb_r1.training.adaptive.rewards import REWARDS, find_reward


@pytest.fixture
def own_rewards(root, tmp_path, monkeypatch):
    """The example of docs/adaptive.md, and something beside it that is no reward."""
    example = re.search(r"^    # my_rewards.py\n(?:    .*\n)+", (root / "docs/adaptive.md").read_text(), re.MULTILINE)
    (tmp_path / "my_rewards.py").write_text(f"{textwrap.dedent(example[0])}\nNUMBER = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_rewards:brevity"
    sys.modules.pop("my_rewards", None)


def test_by_name_or_by_import_path(own_rewards):
    assert all(find_reward(name) is reward for name, reward in REWARDS.items())
    assert find_reward(own_rewards)(num_reasoning_tokens=[0, 3]) == [1.0, 0.25]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "brevity",
            "there is no reward 'brevity'; allowed: format, target_probability, target_cosine, target_margin, cost,",
        ),
        ("my_rewards:none", "'my_rewards:none' can't be imported"),
        ("my_rewards:NUMBER", "the reward 'my_rewards:NUMBER' is a int; it has to be a function"),
    ],
)
def test_what_is_no_reward(name, message, own_rewards):
    with pytest.raises(ValueError, match=re.escape(message)):
        find_reward(name)


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_reward_of_ones_own_is_weighed_and_logged(own_rewards, trainer_of, vivid, rows):
    trainer = trainer_of(vivid, rows, rewards={own_rewards: 0.5}, max_steps=1)
    assert trainer.reward_weights.tolist() == pytest.approx([0.1, 1.0, 0.05, 0.5])
    assert "cost 0.05, my_rewards:brevity 0.5" in trainer.facts["reward weights"]
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "rewards/brevity/mean" in log]
    assert 0 < log["rewards/brevity/mean"] < 1
    weights = {"format_reward": 0.1, "target_probability_reward": 1.0, "cost_reward": 0.05, "brevity": 0.5}
    weighted = sum(weight * log[f"rewards/{name}/mean"] for name, weight in weights.items())
    assert log["reward"] == pytest.approx(weighted, rel=1e-4)
