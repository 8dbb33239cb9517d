#!/usr/bin/env bash
# Retrain both shipped heads from nothing: the target writes the data, then the heads are trained.
#
#   recipes/smollm2-135m.sh PROMPTS WORK
#
# PROMPTS holds gsm8k_train.jsonl and mbpp.jsonl, one {"id", "turns"} a line; WORK receives the
# token stores, the feature cache and the heads. Interrupted, the same command continues.
set -euo pipefail
prompts=${1:?give the folder of gsm8k_train.jsonl and mbpp.jsonl}
work=${2:?give a folder for data and heads}
here=$(cd "$(dirname "$0")" && pwd)
hasspec=${HASSPEC:-hasspec}
target=smollm2-135m

synth() { # prompts of MBPP, of GSM8K, and conversations that the target begins itself
    "$hasspec" synth $target --out "$work/stores/mbpp" --prompts "$prompts/mbpp.jsonl" \
        --limit "$1" --seed 1
    "$hasspec" synth $target --out "$work/stores/gsm8k" --prompts "$prompts/gsm8k_train.jsonl" \
        --shuffle --limit "$2" --seed 2
    "$hasspec" synth $target --out "$work/stores/chat" --magpie "$3" --seed 3
}

train() { # a recipe, the folder of the head, its stores, and further options
    local stores=()
    for store in $3; do stores+=(--data "$work/stores/$store"); done
    "$hasspec" train $target --dtype bfloat16 --cache "$work/features" "${stores[@]}" \
        --recipe "$here/$target-$1.yaml" --out "$2" "${@:4}"
}

# A stage that has its head is not repeated: the data has grown since.
trained() { [ -f "$1/model.safetensors" ]; }

# 1. The common start: one alignment step on the first part of the data.
start=$work/heads/$target-start
if ! trained "$start"; then
    synth 787 649 705
    train start "$start" "mbpp gsm8k chat"
fi

# 2. Each head by its own recipe, on twice the data.
for head in hass eagle; do
    middle=$work/heads/$target-$head-middle
    if ! trained "$middle"; then
        synth 974 1625 2269
        train $head "$middle" "mbpp gsm8k chat" --init "$start" --set seed=1 \
            --set optimisation.steps=2500 --set alignment.beta=1.0 --set validation.every=250
    fi
done

# 3. And again, on twice as much once more.
synth 974 4356 2693
"$hasspec" synth $target --out "$work/stores/mbpp-sampled" --prompts "$prompts/mbpp.jsonl" \
    --limit 974 --temperature 0.7 --seed 4
for head in hass eagle; do
    train $head "$work/heads/$target-$head" "mbpp mbpp-sampled gsm8k chat" \
        --init "$work/heads/$target-$head-middle"
done
