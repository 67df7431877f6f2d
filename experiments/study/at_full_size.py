"""How the published figure would be tested: the commands, from one pairs table to a result."""

from __future__ import annotations

AT_FULL_SIZE = """\
The published 71.2 on MMEB-V2 comes from a 4B backbone, an evaluator that is larger still, and GPUs. None of that is
here, so nothing on this page says whether it can be had. These commands would run it, in a checkout of the project, on
eight GPUs with 80 GB, from one pairs table, `all.parquet`: the columns `pair_id`, `task`, `query` and `target` that
docs/training.md describes, made of MMEB-train or other data. A tenth of it is kept from the joint phase, for GRPO. The
gate is taught in the joint phase, by `gate_weight` in its recipe: with one epoch every pair is new to the model when
it is seen. (A gate that was never taught leans to direct answers, and GRPO would hardly see a thought.)

    python -c "from datasets import Dataset; \\
        parts = Dataset.from_parquet('all.parquet').train_test_split(0.1, seed=0); \\
        parts['train'].to_parquet('pairs.parquet'); parts['test'].to_parquet('policy.parquet')"
    mmemb-r1 init --vlm Qwen/Qwen3-VL-4B-Instruct --output start
    mmemb-r1 rationales --pairs pairs.parquet --pool examples/pool.yaml --output rationales
    mmemb-r1 select --pairs pairs.parquet --rationales rationales --evaluator Qwen/Qwen3-VL-32B-Instruct \\
        --output selection
    accelerate launch --config_file examples/accelerate-fsdp-8gpu.yaml -m mmemb_r1.cli train joint \\
        --config examples/joint-qwen3-vl-4b-8gpu.yaml --model start --pairs pairs.parquet \\
        --rationales selection/selected.parquet --output joint
    accelerate launch --multi_gpu --num_processes 8 -m mmemb_r1.cli train adaptive --model joint/model \\
        --pairs policy.parquet --joint-pairs pairs.parquet --output adaptive
    mmemb-r1 evaluate --model adaptive/model --mmeb mmeb-v2 --download --modes never,always,auto --output results/
"""
