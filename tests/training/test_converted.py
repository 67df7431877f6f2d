"""Both phases on models that read and think in other places than our own: steps against plain writings."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from transformers import TrainerCallback

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer, JointConfig, JointRun, JointTrainer, train_joint
from mmemb_r1.training.adapters import control_ids, lora_config, with_adapters

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]
# arguments of the conversion, and the texts around a rationale
LAYOUTS = {
    "read before the marker": (
        {"controls": Controls(closing="\nassistant\n"), "embed_position": "before"},
        ("<think>", "</think>", "\nassistant\n<|embed|>"),
    ),
    "a token that is there": ({"controls": Controls.at("<|endoftext|>")}, ("<think>", "</think>", "<|endoftext|>")),
    "two markers": (
        {"controls": Controls("<a>", "So <b>, <b>:", "</r>", " then <b> ", "<b>"), "embed_position": "before"},
        ("So <b>, <b>:", "</r>", " then <b> <b>"),
    ),
    "before the last norm": (
        {"controls": Controls(closing="\nassistant\n"), "embed_position": "before", "embed_state": "unnormed"},
        ("<think>", "</think>", "\nassistant\n<|embed|>"),
    ),
}
ROWS = [6, 7, 8]  # names of colours and pictures of them, with a rationale on each side


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def built(thinking, layout):
    """A model of the layout, whose last norm's weights are not all 1, and its processor."""
    model = thinking("qwen3_vl", max_reasoning_rounds=1, **LAYOUTS[layout][0])
    with torch.no_grad():
        model[0].model.vlm.get_decoder().norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    return model[0].model, model.processor


class Whole:
    """A prompt and more in one plain pass of the backbone: `ids`, `hidden` `(S, H)`, length of the `prompt`."""

    def __init__(self, model, processor, layout, value, tail=()):
        batch = dict(render(processor, to_conversations([value])))
        self.prompt = batch["input_ids"].shape[1]
        tail = torch.tensor([list(tail)], dtype=torch.long)
        batch["input_ids"] = torch.cat([batch["input_ids"], tail], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if "mm_token_type_ids" in batch:
            batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(tail)], dim=1)
        self.ids, self.config, self.model = batch["input_ids"][0], model.config, model
        self.unnormed = None
        hook = model.vlm.get_decoder().norm.register_forward_pre_hook(self._keep)
        self.hidden = model.vlm.model(**batch).last_hidden_state[0]
        hook.remove()

    def _keep(self, _, inputs):
        self.unnormed = inputs[0][0]

    def vector(self, place):
        """The vector whose marker is at a place."""
        states = self.unnormed if self.config.embed_state == "unnormed" else self.hidden
        return normalize(states[place - (self.config.embed_position == "before")], dim=0)

    def logp(self, place, temperature=None):
        """The log-probability of the token at a place, of all tokens or of those that rationales are drawn from."""
        logits = self.model.vlm.lm_head(self.hidden[place - 1])
        if temperature is not None:
            never = [*self.config.suppressed_token_ids, *range(self.config.rationale_vocab_size, len(logits))]
            logits = logits.index_fill(0, torch.tensor(never), -math.inf) / temperature
        return logits.log_softmax(dim=0)[self.ids[place]]


def around(processor, layout):
    return [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in LAYOUTS[layout][1]]


def gradients(model):
    found = {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None and one.grad.any()
    }
    model.zero_grad()
    return found


def check_gradients(found, expected):
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-4 * float(gradient.abs().max()), msg=name)


@pytest.fixture
def joint(tmp_path, on_cpu, rows):
    """`joint(model, processor, **arguments)`: a trainer of the joint phase."""

    def build(model, processor, peft_config=None, table=None, **changes):
        defaults = {"per_device_train_batch_size": 3, "sub_batch_size": 3, "max_steps": 4, "learning_rate": 1e-3}
        defaults |= {"output_dir": str(tmp_path / "checkpoints"), "logging_steps": 1, "save_strategy": "no", **on_cpu}
        args = JointConfig(**{**defaults, **changes})
        table = rows.select(ROWS) if table is None else table
        return JointTrainer(model.train(), args, table, processor, peft_config=peft_config)

    return build


@pytest.fixture
def adaptive(tmp_path, on_cpu, rows):
    """`adaptive(model, processor, **arguments)`: a trainer of the adaptive phase."""

    def build(model, processor, **changes):
        defaults = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 4, "learning_rate": 1e-3}
        defaults |= {"max_reasoning_tokens": 4, "target_probability_temperature": 0.1, "logging_steps": 1, **on_cpu}
        args = AdaptiveGRPOConfig(
            **{"output_dir": str(tmp_path / "out"), "save_strategy": "no", **defaults, **changes}
        )
        return AdaptiveGRPOTrainer(model.train(), args, rows, processor)

    return build


@pytest.mark.parametrize("cached", [False, True])
def test_a_joint_step(built, layout, joint, rows, cached):
    (model, processor), (opening, end, closing) = built, around(built[1], layout)
    trainer = joint(model, processor, mini_batch_size=2 if cached else None)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.training_step(trainer.model, batch)
    found = gradients(model)

    vectors, logps = {}, {}
    table = rows.select(ROWS)
    for side in ("query", "target"):
        vectors[side], logps[side] = [], []
        for value, (text,) in zip(table[side], table[f"{side}_rationale"], strict=True):
            thought = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            given = {name: part for name, part in value.items() if part}
            whole = Whole(model, processor, layout, given, [*opening, *thought, *end, *closing])
            vectors[side].append([whole.vector(whole.prompt - 1), whole.vector(len(whole.ids) - 1)])
            first = whole.prompt + len(opening)
            logps[side] += [whole.logp(place) for place in range(first, first + len(thought) + 1)]  # r and its end
    query, target = ([torch.stack(path) for path in zip(*vectors[side], strict=True)] for side in ("query", "target"))
    expected = torch.zeros(())
    for (a, b), weight in {(0, 0): 1.0, (1, 0): 1.0, (0, 1): 0.5, (1, 1): 0.5}.items():
        scores = query[a] @ target[b].T / 0.02
        right = torch.arange(3)
        expected = expected + weight * (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2
    expected = expected - torch.stack(logps["query"]).mean() - torch.stack(logps["target"]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    check_gradients(found, gradients(model))
    assert not any(name.startswith("gate.") for name in found)


def test_a_grpo_step(built, layout, adaptive, rows):
    """What is chosen gets its advantage: to think or not, the words of a rationale, its end if the budget was left."""
    (model, processor), (opening, end, closing) = built, around(built[1], layout)
    trainer = adaptive(model, processor, contrastive_weight=0.0, temperature=0.8)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    chosen_rows = (0, 13)  # with a picture, and without
    inputs = [copy.copy(trainer.train_dataset[row]) for row in chosen_rows for _ in range(4)]
    assert trainer.max_completion_length == len(opening) + 4 + len(end) + len(closing) + 1
    batch = trainer._generate_and_score_completions(inputs)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    found = gradients(model)

    terms, number = [], 0
    for place in range(8):
        value = {name: part for name, part in rows[chosen_rows[place // 4]]["query"].items() if part}
        ids = batch["completion_ids"][place][batch["completion_mask"][place].bool()].tolist()
        whole = Whole(model, processor, layout, value, ids)
        assert whole.ids.tolist()[whole.prompt :] == ids
        thinks, advantages = len(ids) > 1, batch["advantages"][place]
        assert thinks == (place % 4 > 0)  # the first of a group embeds directly
        logit = model.gate(whole.hidden[whole.prompt - 1].detach()) / 0.8
        terms.append(advantages[0] * logsigmoid(logit if thinks else -logit))
        number += 1
        if thinks:
            assert ids[: len(opening)] == opening and ids[-len(closing) - 1 : -1] == closing
            words = ids.index(end[0]) - len(opening)
            for offset in range(len(opening), len(opening) + words + (words < 4)):
                terms.append(advantages[offset] * whole.logp(whole.prompt + offset, temperature=0.8))
                number += 1
    assert (batch["completion_mask"] * batch["tool_mask"]).sum() == number
    expected = -torch.stack(terms).sum() / number
    expected.backward()
    check_gradients(found, gradients(model))
    assert {"gate.output.weight", "gate.output.bias"} <= found.keys()


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["read before the marker"], indirect=True)
@pytest.mark.parametrize("phase", ["joint", "adaptive"])
def test_a_run_that_was_killed_comes_to_the_same(built, joint, adaptive, tmp_path, phase):
    def trainer(folder):
        make = {"joint": joint, "adaptive": adaptive}[phase]
        saving = {"output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 2}
        return make(copy.deepcopy(built[0]), built[1], **saving)

    whole = trainer("whole")
    whole.train()
    part = trainer("part")
    part.add_callback(KillAt(3))
    with pytest.raises(KeyboardInterrupt):
        part.train()
    rest = trainer("part")
    rest.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert rest.state.global_step == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, rest.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "layout", ["read before the marker", pytest.param("two markers", marks=pytest.mark.slow)], indirect=True
)
def test_a_run_with_adapters_saves_what_it_trained(built, layout, rows, tmp_path, on_cpu):
    model, processor = built
    model.config.thinker_form = "text"
    MMEmbR1.from_model(model, processor).save_pretrained(str(tmp_path / "start"))
    rows.select(ROWS).to_parquet(str(tmp_path / "pairs.parquet"))
    rows.select([0, 1]).to_parquet(str(tmp_path / "held_out.parquet"))
    settings = {"max_steps": 2, "per_device_train_batch_size": 3, "sub_batch_size": 3, "learning_rate": 1e-4}
    settings |= {"direct_anchor": 0.9, **{name: value for name, value in on_cpu.items() if name != "report_to"}}
    files = {"pairs": tmp_path / "pairs.parquet", "eval_pairs": tmp_path / "held_out.parquet"}
    output = tmp_path / "out"
    train_joint(JointRun(model=str(tmp_path / "start"), output=output, lora={"r": 2}, settings=settings, **files))
    trained = MMEmbR1(str(output / "model"), device="cpu")
    for name in ("embed_position", "opening_token_ids", "closing_token_ids", "embed_token_id", "end_think_token_id"):
        assert getattr(trained[0].model.config, name) == getattr(model.config, name), name
    assert trained[0].model.config.thinker_form == "tokens"  # it has learnt to read rationales there
    first = MMEmbR1(str(tmp_path / "start"), device="cpu")
    inputs = ["say red", "a longer one, blue and white"]
    now, then = (one.encode(inputs, reasoning="never", convert_to_tensor=True) for one in (trained, first))
    assert not torch.equal(now, then) and torch.cosine_similarity(now, then).min() > 0.9


def test_tokens_that_conversion_added_are_trained_beside_adapters(built, layout):
    model, processor = built
    names = {"two markers": {"<a>", "</r>", "<b>"}, "a token that is there": {"<|endoftext|>", "<think>", "</think>"}}
    wanted = names.get(layout, {"<|embed|>", "<think>", "</think>"})
    assert {processor.tokenizer.convert_ids_to_tokens(one) for one in control_ids(model)} == wanted
    wrapped = with_adapters(model, lora_config(model, r=2))
    (delta,) = [one for name, one in wrapped.named_parameters() if "trainable_tokens_delta" in name]
    assert len(delta) == 3


@pytest.mark.parametrize("phase", ["joint", "adaptive"])
def test_two_spaces_are_refused(thinking, joint, adaptive, phase):
    controls = Controls("<disc_emb>", "\nThink.\n", "<gen_emb>", reasoned_marker=None)
    model = thinking("qwen3_vl", max_reasoning_rounds=1, controls=controls, spaces=2)
    make = {"joint": joint, "adaptive": adaptive}[phase]
    with pytest.raises(ValueError, match=f"are two spaces .* the {phase} phase compares them.* `mmemb-r1 train gate`"):
        make(model[0].model, model.processor)


def test_an_embedder_that_learnt_no_rationale_reads_a_thinkers_as_text(tiny_checkpoint, rows, tmp_path, on_cpu):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    model[0].model.config.thinker_form = "text"
    model.save_pretrained(str(tmp_path / "start"))
    rows.select(ROWS).to_parquet(str(tmp_path / "pairs.parquet"))
    settings = {"max_steps": 1, "per_device_train_batch_size": 3, "sub_batch_size": 3, "use_rationales": False}
    settings |= {name: value for name, value in on_cpu.items() if name != "report_to"}
    start, pairs, output = str(tmp_path / "start"), tmp_path / "pairs.parquet", tmp_path / "out"
    train_joint(JointRun(model=start, pairs=pairs, output=output, settings=settings))
    assert MMEmbR1(str(output / "model"), device="cpu")[0].model.config.thinker_form == "text"
