#!/usr/bin/env bash
# Kills a training run with SIGKILL at random moments until it has been killed N times, starting it
# again each time with the same command line; then compares its final weights, bit for bit, with those
# of a run that nobody killed.
#
#   scripts/kill_runs.sh [--llava build/release/llava] [--kills 200] [--folder DIR] [TRAIN OPTIONS...]
#
# Each killed run is of 12 steps with LoRA and dropout that save after every step; runs follow each other
# until there were enough kills. TRAIN OPTIONS are added to both, such as --nproc_per_node 2 --zero 2.
set -euo pipefail
llava=build/release/llava kills=200 folder=$(mktemp -d)
while [ $# -gt 0 ]; do
  case $1 in
    --llava) llava=$2; shift 2 ;;
    --kills) kills=$2; shift 2 ;;
    --folder) folder=$2; shift 2 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
done
mkdir -p "$folder"
export OMP_NUM_THREADS=1
[ -d "$folder/model" ] || {
  "$llava" data make-scenes --output_dir "$folder/world" --quiet >"$folder/make.log" 2>&1
  "$llava" init --shape tiny --tokenizer_text "$folder/world/corpus.txt" --image_size 84 \
    --output_dir "$folder/model" >>"$folder/make.log" 2>&1
}
options=("$@")
# command FOLDER: fills `command`, so that a process in the background is the program itself.
command_for() {
  command=("$llava" train --model_name_or_path "$folder/model" --version v1
    --data_path "$folder/world/talk.json" --image_folder "$folder/world/images" --output_dir "$1"
    --max_steps 12 --save_steps 1 --per_device_train_batch_size 2 --lora_enable True --lora_r 4
    --lora_dropout 0.1 --learning_rate 1e-3 --device cpu --resume_from_checkpoint last "${options[@]}")
}
sum() { cat "$1"/model/adapter_model.safetensors "$1"/model/non_lora_trainables.bin | sha256sum; }

rm -rf "$folder/whole"
begin=$(date +%s%N)
command_for "$folder/whole"
"${command[@]}" >"$folder/train.log" 2>&1
length=$((($(date +%s%N) - begin) / 1000000)) # of a whole run, in ms
want=$(sum "$folder/whole")

killed=0 runs=0
while [ $killed -lt "$kills" ]; do
  runs=$((runs + 1))
  rm -rf "$folder/killed"
  command_for "$folder/killed"
  while :; do
    # Mostly while it trains and saves; sometimes while it starts.
    life=$(awk -v ms=$length -v seed=$RANDOM 'BEGIN { srand(seed); printf "%.3f", 0.01 + rand() * ms / 1000 }')
    [ $killed -lt "$kills" ] || life=0 # for ever
    code=0 begin=$(date +%s%N)
    timeout --signal=KILL "$life" "${command[@]}" >>"$folder/train.log" 2>&1 || code=$?
    [ $code -ne 0 ] || break
    [ $code -eq 137 ] || { echo "a resumed run failed with code $code; see $folder/train.log" >&2; exit 1; }
    killed=$((killed + 1))
  done
  lived=$((($(date +%s%N) - begin) / 1000000))
  [ $lived -lt 500 ] || [ $lived -ge $length ] || length=$lived # the machine was busier before
  [ "$(sum "$folder/killed")" = "$want" ] || { echo "run $runs ended with other weights" >&2; exit 7; }
  echo "$killed kills, $runs runs ended with the same weights" >&2
done
echo "$killed kills; $runs runs ended with bit-identical weights"
