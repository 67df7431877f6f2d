"""An executor without a model: a row's vector is its number, and it thinks for as many steps as it says."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np

from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions
from mmemb_r1.serving.executor import Answer, Prepared, Row, ThinkingLostError
from mmemb_r1.serving.scheduler import Job


def options(reasoning="never", threshold=0.5):
    return ReasoningOptions(reasoning, threshold, 100, 1, Sampling())


def row(number, steps=0, index=0, tokens=1, **more):
    """One that thinks for so many steps; 0 never does."""
    value = {"number": number, "steps": steps, "tokens": tokens, **more}
    return Row(value, options("always" if steps else "never"), index=index)


def job(*rows, **fields):
    for index, one in enumerate(rows):
        one.index = index
    return Job(list(rows), **fields)


class FakeExecutor:
    """
    Keep a record of what is asked. `value["fails"]` says where a row breaks the executor: `"prepare"`, `"read"`,
    `"join"` or `"step"`. While `open` is not set, reading waits.
    """

    def __init__(self, room=8):
        self.most, self.at_work, self.log = room, {}, []
        self.open, self.resets = threading.Event(), 0
        self.open.set()
        self.broken = False
        self.step_seconds, self.fixed_cost = 0.0, 1000

    @property
    def thinking(self):
        return len(self.at_work)

    @property
    def room(self):
        return self.most - self.thinking

    def prepare(self, rows):
        assert not any(one.value.get("fails") == "prepare" for one in rows), "a bug"
        return [
            ValueError(one.value["wrong"]) if "wrong" in one.value else Prepared(one.value["tokens"], None)
            for one in rows
        ]

    def read(self, rows):
        self.open.wait(60)
        self.log.append(("read", [one.value["number"] for one in rows]))
        assert all(one.prepared is not None for one in rows)
        self._break("read", rows)
        thinkers = [one for one in rows if one.may_think and one.value["steps"]]
        assert len([one for one in rows if one.may_think]) <= self.room
        if any(one.value.get("fails") == "join" for one in thinkers):
            raise ThinkingLostError("joined badly")
        self.at_work |= {one: one.value["steps"] for one in thinkers}
        return [(one, self.answer(one)) for one in rows if one not in thinkers]

    def _break(self, where, rows):
        if self.broken or any(one.value.get("fails") == where for one in rows):
            raise RuntimeError("the device is gone")

    def answer(self, one, rounds=0):
        vector = np.array([one.value["number"], rounds], dtype=np.float32)
        return Answer(vector, 0.9, 1, rounds=rounds)

    def step(self):
        time.sleep(self.step_seconds)
        self.log.append(("step", [one.value["number"] for one in self.at_work]))
        self._break("step", self.at_work)
        self.at_work = {one: left - 1 for one, left in self.at_work.items()}
        done = [one for one, left in self.at_work.items() if left == 0]
        for one in done:
            del self.at_work[one]
        return [(one, self.answer(one, rounds=1)) for one in done]

    def stop(self, rows):
        self.log.append(("stop", [one.value["number"] for one in rows]))
        for one in rows:
            del self.at_work[one]
        return [(one, replace(self.answer(one), stopped=True)) for one in rows]

    def reset(self):
        self.resets += 1
        self.at_work = {}

    def rationale(self, answer):
        return ""

    def close(self):
        self.at_work = {}
