#!/usr/bin/env bash
# Trains the same few steps with every way to start several processes, and with none, and compares the
# losses; then breaks runs on purpose and shows how they end.
#
#   scripts/check_launchers.sh [--llava build/release/llava] [--torchrun TORCHRUN] [--mpirun MPIRUN]
#
# torchrun comes with PyTorch, mpirun with Debian's openmpi-bin; either is left out when it is not found.
# Slurm is played by its environment variables.
set -euo pipefail
llava=build/release/llava torchrun=$(command -v torchrun || true) mpirun=$(command -v mpirun || true)
while [ $# -gt 0 ]; do
  case $1 in
    --llava) llava=$2 ;;
    --torchrun) torchrun=$2 ;;
    --mpirun) mpirun=$2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] || [ "$1" = -h ] || exit 2; exit 0 ;;
  esac
  shift 2
done
llava=$(realpath "$llava")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMP_NUM_THREADS=1
"$llava" data make-scenes --output_dir world >make.log 2>&1
"$llava" init --shape tiny --tokenizer_text world/corpus.txt --image_size 84 --output_dir model >>make.log 2>&1
train=("$llava" train --model_name_or_path model --version v1 --data_path world/talk.json --image_folder world/images
  --learning_rate 1e-3 --device cpu --threads 1 --save_strategy no --dist_timeout 60)
short=(--max_steps 6 --per_device_train_batch_size 4)
long=(--max_steps 100000 --per_device_train_batch_size 4)
failures=0

losses() { grep '"kind":"train"' "$1/metrics.jsonl" | sed 's/.*"loss":\([0-9.]*\).*/\1/'; }
# same NAME FOLDER: losses equal to those of one process, to 1e-4.
same() {
  if paste <(losses one) <(losses "$2") | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > 1e-4) bad = 1 } END { exit bad || NR != 6 }'; then
    echo "ok    $1"
  else
    echo "FAIL  $1: other losses"; failures=$((failures + 1))
  fi
}
# ends CODE TEXT NAME LOG CODE_GOT
ends() {
  if [ "$1" = "$5" ] && grep -q "$2" "$4"; then
    echo "ok    $3: exit $5: $(grep -m1 "$2" "$4" | cut -c1-230)"
  else
    echo "FAIL  $3: exit $5, expected $1 and \"$2\""; tail -5 "$4"; failures=$((failures + 1))
  fi
}
# as RANK COMMAND...: rank RANK of two by torchrun's variables.
as() { env RANK="$1" LOCAL_RANK="$1" WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR="${address:-127.0.0.1}" \
  MASTER_PORT="${port:-29533}" "${@:2}"; }
as_slurm() { env SLURM_STEP_NUM_TASKS=2 SLURM_PROCID="$1" SLURM_LOCALID="$1" SLURM_NODEID=0 \
  SLURM_STEP_TASKS_PER_NODE=2 SLURM_JOB_NODELIST=here SLURM_JOB_ID=$$ SLURM_STEP_ID=0 "${@:2}"; }

"${train[@]}" --max_steps 6 --per_device_train_batch_size 8 --output_dir one >one.log 2>&1
"${train[@]}" "${short[@]}" --nproc_per_node 2 --output_dir own >own.log 2>&1; same "--nproc_per_node 2" own
if [ -n "$torchrun" ]; then
  "$torchrun" --no-python --nproc_per_node 2 "${train[@]}" "${short[@]}" --output_dir torchrun >torchrun.log 2>&1
  same "torchrun --no-python --nproc_per_node 2" torchrun
fi
if [ -n "$mpirun" ]; then
  root=(); [ "$(id -u)" != 0 ] || root=(--allow-run-as-root)
  "$mpirun" "${root[@]}" --oversubscribe -np 2 "${train[@]}" "${short[@]}" --output_dir mpirun >mpirun.log 2>&1
  same "mpirun -np 2" mpirun
fi
as_slurm 1 "${train[@]}" "${short[@]}" --output_dir slurm >slurm1.log 2>&1 &
as_slurm 0 "${train[@]}" "${short[@]}" --output_dir slurm >slurm.log 2>&1; wait; same "srun's variables" slurm

# both NAME CODE TEXT "OPTIONS OF RANK 1": two ranks that do not agree.
both() {
  local a=0 b=0
  as 1 "${train[@]}" "${short[@]}" --output_dir other ${4} >b.log 2>&1 & local child=$!
  as 0 "${train[@]}" "${short[@]}" --output_dir other >a.log 2>&1 || a=$?
  wait $child || b=$?
  ends "$2" "$3" "$1, rank 0" a.log $a; ends "$2" "$3" "$1, rank 1" b.log $b
}
both "other settings" 2 'disagree about the settings: .*learning_rate' "--learning_rate 2e-3"
both "other data" 2 'disagree about the settings: .*data_path' "--data_path world/captions.json"

code=0; python3 -c "
import socket, sys, subprocess, os
taken = socket.socket(); taken.bind(('', 0)); taken.listen()
env = dict(os.environ, RANK='0', LOCAL_RANK='0', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
           MASTER_PORT=str(taken.getsockname()[1]))
sys.exit(subprocess.run(sys.argv[1:], env=env).returncode)" \
  "${train[@]}" "${short[@]}" --output_dir none >port.log 2>&1 || code=$?
ends 2 'is in use' "a port in use" port.log $code
code=0; address=no-such-host.invalid as 1 "${train[@]}" "${short[@]}" --output_dir none >host.log 2>&1 || code=$?
ends 2 'is no known host' "an unknown address" host.log $code
code=0; as 1 "${train[@]}" "${short[@]}" --dist_timeout 2 --output_dir none >nobody.log 2>&1 || code=$?
ends 5 'nobody answers at' "an address where nobody answers" nobody.log $code
code=0; "${train[@]}" "${short[@]}" --device cuda --nproc_per_node 64 --output_dir none >gpus.log 2>&1 || code=$?
ends 2 'llava: ' "more processes than devices" gpus.log $code

# lost SIGNAL TIMEOUT NAME: one of three ranks is lost in the middle of the run.
lost() {
  "${train[@]}" "${long[@]}" --nproc_per_node 3 --dist_timeout "$2" --output_dir "lost$1" >"lost$1.log" 2>&1 &
  local launcher=$! code=0 begin
  until [ -e "lost$1/metrics.jsonl" ] && [ "$(wc -l <"lost$1/metrics.jsonl")" -ge 3 ]; do sleep 0.2; done
  sleep 1
  kill "-$1" "$(pgrep -P $launcher | tail -1)"; begin=$SECONDS
  wait $launcher || code=$?
  ends 5 'rank 2 did not answer.*samples' "$3, after $((SECONDS - begin)) s" "lost$1.log" $code
}
lost KILL 60 "a killed rank"
lost STOP 5 "a rank that hangs, with --dist_timeout 5"
if pgrep -f "$folder|lostKILL|lostSTOP" >/dev/null; then echo "FAIL  processes are left"; failures=$((failures + 1)); else echo "ok    no process is left"; fi
[ $failures = 0 ] && echo "all as it should be"
exit $((failures > 0))
