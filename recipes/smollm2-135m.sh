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

train() { # a recipe, the folder of the head, and further options
    "$hasspec" train $target --dtype bfloat16 --cache "$work/features" \
        --data "$work/stores/mbpp" --data "$work/stores/gsm8k" --data "$work/stores/chat" \
        --recipe "$here/$target-$1.yaml" --out "$2" "${@:3}"
}

# The common start saw the first part of the data only.
start=$work/heads/$target-start
if [ ! -f "$start/model.safetensors" ]; then
    synth 787 649 705
    train start "$start"
fi
synth 974 1625 2269
for head in hass eagle; do
    train $head "$work/heads/$target-$head" --init "$start"
done
