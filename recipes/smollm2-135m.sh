#!/usr/bin/env bash
# Retrain both shipped heads from nothing: the target writes the data, then each head is trained.
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

"$hasspec" synth $target --out "$work/stores/mbpp" --prompts "$prompts/mbpp.jsonl" \
    --limit 787 --seed 1
"$hasspec" synth $target --out "$work/stores/gsm8k" --prompts "$prompts/gsm8k_train.jsonl" \
    --shuffle --limit 649 --seed 2
"$hasspec" synth $target --out "$work/stores/chat" --magpie 705 --seed 3

for head in hass eagle; do
    "$hasspec" train $target --dtype bfloat16 --cache "$work/features" \
        --data "$work/stores/mbpp" --data "$work/stores/gsm8k" --data "$work/stores/chat" \
        --recipe "$here/$target-$head.yaml" --out "$work/heads/$target-$head"
done
