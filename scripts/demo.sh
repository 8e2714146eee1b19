#!/usr/bin/env bash
# The main job in one command: makes a small world of pictures and talk, trains both stages of LLaVA on
# it with the program's own verbs, asks about pictures that no training file has, and reports.
# Killed and started again, it goes on where it was.
#
#   scripts/demo.sh [--from-scratch] [--device cpu|cuda|auto] [--folder DIR]
#
#   --from-scratch  teach the parents too (vision tower and language model) instead of taking those
#                   of configs/demo/parents
#   --folder        where everything goes; default demo/ in the current folder
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=demo device=auto scratch=no
while [ $# -gt 0 ]; do
  case $1 in
    --from-scratch) scratch=yes ;;
    --device) device=$2; shift ;;
    --folder) folder=$2; shift ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "demo: unknown option $1 (--from-scratch, --device NAME, --folder DIR)" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$here"

./scripts/setup.sh
[ -f build/release/build.ninja ] || cmake --preset release >"$folder/configure.log" 2>&1 ||
  { cat "$folder/configure.log" >&2; exit 1; }
cmake --build --preset release --target llava_program >"$folder/build.log" 2>&1 ||
  { tail -30 "$folder/build.log" >&2; exit 1; }
llava=build/release/llava
configs=configs/demo
world=$folder/world

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '%s\n' "$*" >&2; }

# phase NAME COMMAND...: runs it unless an earlier run finished it, and counts its minutes.
phase() {
  local name=$1 begin=$SECONDS
  shift
  [ -e "$folder/done/$name" ] && return 0
  "$@"
  mkdir -p "$folder/done"
  echo $((SECONDS - begin)) >"$folder/done/$name"
}

# train NAME CONFIG DATA ARGUMENTS...: one run into $folder/NAME.
train() {
  local name=$1 config=$2 data=$3
  shift 3
  phase "$name" $llava train --config "$configs/$config.json" --data_path "$world/$data.json" \
    --image_folder "$world/images" --output_dir "$folder/$name" --device "$device" \
    --resume_from_checkpoint last "$@"
}

say "1. A small world: pictures, captions and conversations"
phase world $llava data make-scenes --output_dir "$world"

parents=$here/$configs/parents
if [ $scratch = yes ] || [ ! -d "$parents" ]; then
  say "2. The parents, taught from nothing: a language model on text, a vision tower on captions"
  source configs/demo/parents.sh
  parents=$folder/parents
fi

say "3. Stage 1: the projector learns captions, tower and language model frozen"
evaluation=(--eval_data_path "$world/captions_test.json" --eval_strategy steps --eval_steps 125)
train stage1 stage1 captions --model_name_or_path "$parents" "${evaluation[@]}"
say "   the control: the same on captions of other pictures"
train control stage1 shuffled --model_name_or_path "$parents" "${evaluation[@]}"

say "4. Stage 2: projector and language model learn to talk about pictures"
train stage2 stage2 talk --model_name_or_path "$parents" \
  --pretrain_mm_mlp_adapter "$folder/stage1"

say "5. Questions about pictures it has never seen, and about a gray one"
ask() {
  phase "$1" $llava run -m "$folder/stage2/model" --conv_mode vicuna_v1 --temp 0 -n 8 --device "$device" \
    --image_folder "$world/images" --input "$world/$2.jsonl" --output "$folder/$1.jsonl" --batch 16
}
ask answers questions
ask blank_answers blank_questions

minutes() { local sum=0 name; for name in "$@"; do sum=$((sum + $(cat "$folder/done/$name" 2>/dev/null || echo 0))); done
  awk -v s=$sum 'BEGIN { printf "%.2f", s / 60 }'; }
cat >"$folder/minutes.json" <<END
{"data": $(minutes world), "parents": $(minutes seed language single tower parents), "stage1": $(minutes stage1 control),
 "stage2": $(minutes stage2), "eval": $(minutes answers blank_answers)}
END
curves=()
for run in language single tower; do [ -d "$folder/$run" ] && curves+=(--parents "$folder/$run"); done
$llava data report-scenes --world "$world" --answers "$folder/answers.jsonl" \
  --blank_answers "$folder/blank_answers.jsonl" --stage1 "$folder/stage1" --control "$folder/control" \
  --stage2 "$folder/stage2" "${curves[@]}" --minutes "$folder/minutes.json" \
  --scored_model "$folder/stage2/model" --output_dir "$folder"
question=$(ls "$world"/images/question_00000.*)
say "Try next:
  $llava chat -m $folder/stage2/model --image $question
  $llava run -m $folder/stage2/model --image $question -p 'How many shapes are there?'
The report with pictures: $folder/report.html"
