#!/usr/bin/env bash
# One fold on a dataset folder that also holds imagesTs and labelsTs, scored on those: held_out.sh FOLDER BUDGET [FLAGS]
# FLAGS go to autoseg_train. Everything is written under ./autoseg_data/benchmarks/NAME (AUTOSEG_HOME overrides).
set -euo pipefail
data=$(realpath "$1")
budget=$2
shift 2
name=$(basename "$data")
export AUTOSEG_HOME=${AUTOSEG_HOME:-$PWD/autoseg_data/benchmarks/$name}
out=$AUTOSEG_HOME/predictions

show() { printf '\n$ %s\n' "$*"; local start=$SECONDS; "$@"; printf '(%d s)\n' $((SECONDS - start)); }
show autoseg_plan_and_preprocess -d "$data"
show autoseg_train -f 0 --time-budget "$budget" "$@"
show autoseg_predict -i "$data/imagesTs" -o "$out"
show autoseg_evaluate -r "$data/labelsTs" -p "$out" --labels "$data/dataset.json"
