#!/usr/bin/env bash
# From nothing to a trained checkpoint on one machine, by the commands that you would type for your own data:
#
#   experiments/quickstart/quickstart.sh [FOLDER]      (default: runs/quickstart)
#
# Run it again after an interruption: a command whose result is there does nothing, and a training that was stopped goes
# on from its last checkpoint. The settings of each phase, with their reasons, are in YAML files: beside this one, and in
# a folder, RECIPES: small (the default, minutes on two cores), kinds (with all kinds of tasks) or full. What is asked is
# in its world.sh. SEED is that of everything: 0 by default. Two more environment variables change the size: ATLAS
# (options of the benchmark) and MODEL (options of the untrained model). Paths are seen from the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

run=${1:-runs/quickstart}
recipes=${RECIPES:-experiments/quickstart/small}
# shellcheck source=/dev/null
source "$recipes/world.sh"
seed=(--seed "${SEED:-0}")
jobs=$(nproc); jobs=$((jobs < 4 ? jobs : 4))  # each takes about a gigabyte
export PATH="$PWD/.venv/bin:$PATH"
export PYTHONWARNINGS="ignore:You are using 'rollout_func'"  # of TRL; there is nothing to be done about it

step() { printf '\n=== %s\n' "$*"; }

step "1. Atlas: pictures, facts and questions"
# shellcheck disable=SC2086  # several options, as in step 2
mmemb-r1 atlas build --output "$run/atlas" "${seed[@]}" ${ATLAS:-$atlas_options}

step "2. A tiny model with random weights"
# shellcheck disable=SC2086
python -m experiments.quickstart.untrained --atlas "$run/atlas" --output "$run/untrained" "${seed[@]}" ${MODEL:-}

step "3. The warm-up: names of pictures, and facts as text"
mmemb-r1 train joint --config "$recipes/warm-up.yaml" --model "$run/untrained" \
    --pairs "$run/atlas/pairs/train.parquet" --cpu "${seed[@]}" --output "$run/warm-up"

step "4. Rationales of four workers, of which one helps"
sed "s|runs/quickstart/atlas|$run/atlas|" experiments/quickstart/pool.yaml > "$run/pool.yaml"
mmemb-r1 rationales --pairs "$run/atlas/pairs/train.parquet" --tasks "$several_steps" --pool "$run/pool.yaml" \
    --output "$run/rationales"

step "5. Selection: which of the rationales help?"
mmemb-r1 select --pairs "$run/atlas/pairs/train.parquet" --tasks "$several_steps" --rationales "$run/rationales" \
    --evaluator "$run/warm-up/model" --space log-odds --jobs "$jobs" --device cpu --output "$run/selection"
python -m experiments.quickstart.rehearsal --atlas "$run/atlas" --selection "$run/selection" \
    --tasks "$several_steps" --output "$run/selection/with-own.parquet"

step "6. The joint phase: thinking and embedding together"
mmemb-r1 train joint --config "$recipes/joint.yaml" --model "$run/warm-up/model" \
    --pairs "$run/atlas/pairs/train.parquet" --rationales "$run/selection/with-own.parquet" --cpu "${seed[@]}" \
    --output "$run/joint"

step "7. The gate: where does thinking pay?"
gate() {
    mmemb-r1 train gate --config experiments/quickstart/gate.yaml --model "$1" --pairs "$run/atlas/pairs/policy.parquet" \
        --tasks "$asked" --per-task 60 --candidates "$run/atlas/candidates.parquet" --device cpu "${seed[@]}" \
        --output "$2"
}
gate "$run/joint/model" "$run/gate"

step "8. The adaptive phase: gate and rationales, by what they are worth"
# It warns that questions of text alone are in both splits; these ask for facts, which have to be recalled.
mmemb-r1 train adaptive --config "$recipes/adaptive.yaml" --model "$run/gate/model" \
    --pairs "$run/atlas/pairs/policy.parquet" --tasks "$asked" --per-task 60 \
    --joint-pairs "$run/atlas/pairs/train.parquet" --cpu "${seed[@]}" --output "$run/adaptive"

step "9. The gate again: what rationales are worth has changed"
gate "$run/adaptive/model" "$run/gate-again"
ln -sfn gate-again/model "$run/model"

step "10. Evaluation on the test split"
mmemb-r1 evaluate --model "$run/model" --atlas "$run/atlas" --tasks "$asked" --batch-size 128 --rationales \
    --device cpu --output "$run/evaluation"
mmemb-r1 card "$run/model" --results "$run/evaluation/results.json"

step "Done"
python -m experiments.quickstart.showcase --quickstart "$run"
