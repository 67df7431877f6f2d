#!/usr/bin/env bash
# From nothing to a trained checkpoint on one machine, by the commands that you would type for your own data:
#
#   experiments/quickstart/quickstart.sh [FOLDER]      (default: runs/quickstart; twenty minutes on two cores)
#
# Run it again after an interruption: a command whose result is there does nothing, and a training that was stopped goes
# on from its last checkpoint. The settings of each phase, with their reasons, are in the YAML files beside this one.
# Three environment variables change the size: RECIPES (the folder of the YAML files), ATLAS (options of the benchmark)
# and MODEL (options of the untrained model).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-runs/quickstart}
recipes=$(cd "${RECIPES:-$root/experiments/quickstart}" && pwd)
jobs=$(nproc); jobs=$((jobs < 4 ? jobs : 4))  # each takes about a gigabyte
export PATH="$root/.venv/bin:$PATH"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"  # of `experiments`, which is not installed
export PYTHONWARNINGS="ignore:You are using 'rollout_func'"  # of TRL; there is nothing to be done about it
# Questions of several steps: about these the workers are asked, and only their rationales are selected.
several_steps=flag-capital,flag-region,flag-currency,flag-language,flag-tld,neighbour-capital,neighbour-currency,fact-flag

step() { printf '\n=== %s\n' "$*"; }

mkdir -p "$folder"
pushd "$folder" > /dev/null

step "1. Atlas: pictures, facts and questions"
# shellcheck disable=SC2086  # several options
mmemb-r1 atlas build --output atlas ${ATLAS:---num-objects 240}

step "2. A tiny model with random weights"
# shellcheck disable=SC2086
python -m experiments.quickstart.untrained --atlas atlas --output untrained ${MODEL:-}

step "3. The warm-up: names of pictures, and facts as text"
mmemb-r1 train joint --config "$recipes/warm-up.yaml" --model untrained --pairs atlas/pairs/train.parquet \
    --cpu --output warm-up

step "4. Rationales of four workers, of which one helps"
mmemb-r1 rationales --pairs atlas/pairs/train.parquet --tasks "$several_steps" --pool "$recipes/pool.yaml" \
    --output rationales

step "5. Selection: which of the rationales help?"
mmemb-r1 select --pairs atlas/pairs/train.parquet --tasks "$several_steps" --rationales rationales \
    --evaluator warm-up/model --space log-odds --jobs "$jobs" --device cpu --output selection
python -m experiments.quickstart.rehearsal --atlas atlas --selection selection --tasks "$several_steps" \
    --output selection/with-own.parquet

step "6. The joint phase: thinking and embedding together"
mmemb-r1 train joint --config "$recipes/joint.yaml" --model warm-up/model --pairs atlas/pairs/train.parquet \
    --rationales selection/with-own.parquet --cpu --output joint

step "7. The gate: where does thinking pay?"
mmemb-r1 train gate --config "$recipes/gate.yaml" --model joint/model --pairs atlas/pairs/policy.parquet \
    --per-task 60 --candidates atlas/candidates.parquet --device cpu --output gate

step "8. The adaptive phase: gate and rationales, by what they are worth"
# A warning tells that questions of text alone are in both splits; these ask for what is to be recalled.
mmemb-r1 train adaptive --config "$recipes/adaptive.yaml" --model gate/model --pairs atlas/pairs/policy.parquet \
    --per-task 60 --joint-pairs atlas/pairs/train.parquet --cpu --output adaptive
ln -sfn adaptive/model model

step "9. Evaluation on the test split"
mmemb-r1 evaluate --model model --atlas atlas --batch-size 128 --rationales --device cpu --output evaluation
mmemb-r1 card model --results evaluation/results.json

popd > /dev/null
step "Done"
python -m experiments.quickstart.showcase --quickstart "$folder"
