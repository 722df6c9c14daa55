# shellcheck shell=bash
# What the batch scripts share: options for sbatch, starting the ranks, going on after a signal.
# Sourced by them, with ROOT, the project's folder. Every value stays one quoted word; none is
# evaluated.

# shellcheck source=slurm/site.env
source "${BASH_SOURCE[0]%/*}/site.env"
NODE_PATIENCE=200 # seconds; Slurm looks at its nodes every 100 s, unless it is set otherwise
RANK_SCRIPT=${BASH_SOURCE[0]%/*}/rank

say() { printf 'sparsecl: %s\n' "$*" >&2; }

fail() { # CODE TEXT...: a mistake of the user, as launch/train.py says it
    local code=$1
    shift
    say "$*"
    exit "$code"
}

# Take the leading words KEY=VALUE (over those of site.env, also left in SETTINGS) and --dry-run;
# the others are left in REST, without a first --.
# shellcheck disable=SC2034 # DRY_RUN and SETTINGS are for the caller
take_words() {
    DRY_RUN=
    SETTINGS=()
    while (($#)); do
        case $1 in
        --dry-run | --dry_run) DRY_RUN=yes ;;
        PARTITION=* | ACCOUNT=* | TIME=* | NOTICE=* | GPUS=* | GPU_TYPE=* | CPUS_PER_TASK=* | \
            NODES=* | RANKS_PER_NODE=* | STUDY_NODES=* | STUDY_RANKS_PER_NODE=* | \
            MAX_RESTARTS=* | LOGS=* | PYTHON=*)
            printf -v "${1%%=*}" '%s' "${1#*=}"
            SETTINGS+=("$1")
            ;;
        [A-Z]*=*) fail 64 "${1%%=*}: not a name of site.env that can be set for one submission" ;;
        --) shift && break ;;
        *) break ;;
        esac
        shift
    done
    REST=("$@")
    check_site
}

# A number is used in arithmetic, where other text would be run.
check_site() {
    local name
    for name in NOTICE CPUS_PER_TASK NODES RANKS_PER_NODE STUDY_NODES STUDY_RANKS_PER_NODE \
        MAX_RESTARTS; do
        [[ ${!name} =~ ^[1-9][0-9]{0,8}$ ]] || fail 64 "$name=${!name}: must be a number >= 1"
    done
    [[ $GPUS == yes || $GPUS == no ]] || fail 64 "GPUS=$GPUS: must be yes or no"
}

# Options of sbatch, into OPTIONS, for a job of KIND: train, study (one run of it) or report.
site_options() {
    local nodes=$NODES ranks=$RANKS_PER_NODE
    case $1 in
    study) nodes=$STUDY_NODES ranks=$STUDY_RANKS_PER_NODE ;;
    report) nodes=1 ranks=1 ;;
    esac
    OPTIONS=("--nodes=$nodes" "--ntasks-per-node=$ranks" "--cpus-per-task=$CPUS_PER_TASK"
        "--time=$TIME" --requeue --open-mode=append)
    # To the ranks themselves, all steps of the job; the shell of the script gets none.
    [[ $1 == report ]] || OPTIONS+=("--signal=USR1@$NOTICE")
    [[ $GPUS == no ]] || OPTIONS+=("--gpus-per-node=${GPU_TYPE:+$GPU_TYPE:}$ranks")
    [[ -z $PARTITION ]] || OPTIONS+=("--partition=$PARTITION")
    [[ -z $ACCOUNT ]] || OPTIONS+=("--account=$ACCOUNT")
    OPTIONS+=("${SBATCH[@]}")
}

show_command() { # WORDS...: as one could paste it
    local text
    printf -v text '%q ' "$@"
    printf '%s\n' "${text% }"
}

# The line that starts the ranks, into STEP.
step_words() { # COMMAND...
    STEP=(srun --kill-on-bad-exit=0 --wait=240 --distribution=block --input=none --export=ALL
        "--cpus-per-task=${SLURM_CPUS_PER_TASK:-$CPUS_PER_TASK}")
    # Each process picks its GPU by LOCAL_RANK, and sees those of its neighbours.
    [[ $GPUS == no ]] || STEP+=(--gpu-bind=none)
    STEP+=("${SRUN[@]}" -- bash "$RANK_SCRIPT" "${CONTAINER[@]}" "$@")
}

# One process per task of this job, what they print in LOG. Sets CODE to the highest exit code.
run_ranks() { # LOG COMMAND...
    export SPARSECL_LOG=$1
    shift
    step_words "$@"
    local hosts
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER_ADDR=${hosts[0]} # rank 0 is there
    # Of its own for each job, below the ports that the system hands out.
    MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED=1
    say "job $(job_name), restart ${SLURM_RESTART_COUNT:-0}: ${SLURM_NTASKS:-1} ranks on" \
        "$SLURM_JOB_NODELIST, meeting at $MASTER_ADDR:$MASTER_PORT; log $SPARSECL_LOG"
    local pid signalled
    ENDING=
    # Slurm sends TERM to this shell when the job is at its end: it is cancelled, or its time is up.
    trap 'signalled=yes ENDING=yes' TERM
    "${STEP[@]}" &
    pid=$!
    # Comes only if somebody asks for it (scancel --batch); the ranks must hear of it.
    trap 'signalled=yes; kill -USR1 "$pid" 2>/dev/null || :' USR1
    while :; do
        signalled=
        CODE=0
        wait "$pid" || CODE=$?
        [[ -n $signalled ]] || break # else it was the signal that ended the wait
    done
    say "job $(job_name), restart ${SLURM_RESTART_COUNT:-0}: the ranks ended with $CODE"
}

# This job or array task. SLURM_JOB_ID will not do: one task of an array has that of the whole, and
# to requeue it would be to requeue all of them.
job_name() {
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        printf '%s_%s' "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID"
    else
        printf '%s' "$SLURM_JOB_ID"
    fi
}

# True if a rank was lost (76; 134: aborted by NCCL, which waited for it; 137: killed) and Slurm hears
# nothing of its node. Slurm would requeue the job by itself, but takes longer to be sure than the
# other ranks do.
node_is_lost() {
    local end=$((SECONDS + NODE_PATIENCE)) states
    [[ $CODE == 76 || $CODE == 134 || $CODE == 137 ]] && ((${SLURM_JOB_NUM_NODES:-1} > 1)) || return 1
    say "job $(job_name): looking for a lost node for $NODE_PATIENCE s at most"
    while [[ -z $ENDING ]] && ((SECONDS < end)); do
        states=$(sinfo --noheader --Node --nodes="$SLURM_JOB_NODELIST" --format=%T || :)
        [[ $states != *[*]* && $states != *down* ]] || return 0 # a star: does not answer
        sleep 5 || : # a signal that ends it is a reason to look again
    done
    return 1
}

# True if the ranks were asked to stop and nobody wants the job ended: they said so (75), or had not
# yet begun to listen (128 + USR1, 128 + TERM); or if a node has died.
wants_requeue() {
    [[ $CODE == 75 || $CODE == 138 || $CODE == 143 ]] || node_is_lost || return 1
    if [[ -n $ENDING ]]; then
        say "job $(job_name): it was cancelled, or had no time left to save; not requeued"
        return 1
    fi
    if ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
        say "job $(job_name): MAX_RESTARTS=$MAX_RESTARTS are used up; not requeued"
        return 1
    fi
}

requeue() { # ends this script
    scontrol requeue "$(job_name)" || say "job $(job_name): cannot be requeued; submit it again"
    exit 75
}
