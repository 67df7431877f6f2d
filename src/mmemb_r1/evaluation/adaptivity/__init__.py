"""
What a choice between two vectors is worth: pure functions of what a model got for each query without and with a
thought, and of what its gate said.

A query's vector is that of `never` or that of `always`, so what the gate would have got at any threshold, what the
best choice would have got, and what a coin would have got follow from one evaluation of both. Means give every task
the same weight; intervals draw whole clusters of queries. The utility gap is the paper's, the rest ours.

    answers     what the functions take: an entry per query
    choice      the gate's choice against the fixed modes, the best choice and a coin
    curve       scores and costs as the gate's threshold sweeps
    gate        the gate's probability against the sign of the utility gap
    means       what these are made of
"""

from __future__ import annotations

from mmemb_r1.evaluation.adaptivity.answers import Answers
from mmemb_r1.evaluation.adaptivity.choice import Choice, chosen, judge_choice, oracle, random_gate
from mmemb_r1.evaluation.adaptivity.curve import CurvePoint, efficient, invocation_curve
from mmemb_r1.evaluation.adaptivity.gate import LEAST_GAP, GateQuality, auc, gate_quality

__all__ = [
    "LEAST_GAP",
    "Answers",
    "Choice",
    "CurvePoint",
    "GateQuality",
    "auc",
    "chosen",
    "efficient",
    "gate_quality",
    "invocation_curve",
    "judge_choice",
    "oracle",
    "random_gate",
]
