#!/usr/bin/env bash
# Runs the steps of docs/gpu-day.md one after another, each within its time, and goes on where one fails.
# usage: tools/gpu_day.sh FOLDER [DATA]
#   FOLDER holds models as `python -m tools.gpu_check prepare` writes them; results and logs go to FOLDER/results.
#   DATA, a labeled dataset, is for models trained on it: their engines are scored on its val split.
# PYTHON (default: python) runs it, LEVEL (0) is the builder's optimization level, ONLY takes the files whose path holds it.
set -uo pipefail
folder=${1:?usage: tools/gpu_day.sh FOLDER [DATA]}
data=${2:-}
python=${PYTHON:-python} level=${LEVEL:-0} only=${ONLY:-}
results=$folder/results
mkdir -p "$results"
began=$SECONDS

step() { # name, seconds, command...
    local name=$1 seconds=$2 start=$SECONDS
    shift 2
    timeout "$seconds" "$@" > "$results/$name.log" 2>&1
    echo "$((SECONDS - began)) s: $name: exit code $?, $((SECONDS - start)) s: $(tail -n 1 "$results/$name.log" | cut -c1-300)"
}

check() { # step, label, seconds, options...
    local name=$1 label=$2 seconds=$3
    shift 3
    step "$name-$label" "$seconds" "$python" -m tools.gpu_check "$name" --folder "$folder" "$@"
    cp "$folder/$name.json" "$results/$name-$label.json" 2> /dev/null
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,temperature.gpu --format=csv,noheader
check parse all 120 --only "$only"
for precision in fp16 int8 fp32 uint8 topk; do # one at a time: builds time their kernels
    for model in "$folder"/*"$only"*/"$precision".onnx; do
        [ -e "$model" ] || continue
        name=$(basename "$(dirname "$model")")
        file=$name/$precision
        check build "$name-$precision" 240 --only "$file.onnx" --optimization-level "$level" --time-limit 230
        [ -e "${model%.onnx}.engine" ] || continue
        check run "$name-$precision" 60 --only "$file.onnx"
        check bench "$name-$precision" 60 --only "$file.onnx" --repeats 100
        [ -z "$data" ] || step "evaluate-$name-$precision" 90 "$python" -m runtime.evaluate --engine "${model%.onnx}.engine" \
            --data "$data" --coco-results "$results/$name-$precision.coco.json"
    done
done
check exit all 90 --only fp16.onnx
check soak all 120 --only fp16.onnx --seconds 10
cp "$folder"/*/*.engine.json "$folder"/*/*.layers.json "$results" 2> /dev/null
