# shellcheck shell=bash
# What the job scripts share, sourced behind site.sh. Nothing in here is particular to a site.

say() { echo "$(date +%FT%T) $*" >&2; }

# begin: what every job does first
begin() {
    # A wrong start costs a place in the queue; so what was forgotten is said in words.
    case $RANKS_PER_NODE in
    '' | 0 | *[!0-9]*)
        say "RANKS_PER_NODE=$RANKS_PER_NODE in ${HPCMOE_SITE:-jobs/site.sh}: give how many ranks a node has, from 1"
        exit 2
        ;;
    esac
    if [ -n "${SLURM_JOB_ID:-}" ] && ((GPUS_PER_NODE > 0 && ${SLURM_GPUS_ON_NODE:-0} < GPUS_PER_NODE)); then
        say "the job has ${SLURM_GPUS_ON_NODE:-0} GPUs on a node, site.sh says $GPUS_PER_NODE:" \
            "source it before sbatch, or give sbatch --gpus-per-node=$GPUS_PER_NODE"
        exit 2
    fi
    modules
    NODES=${SLURM_JOB_NUM_NODES:-1}
    # Without this each rank would compile its kernels, and ask a shared file system for them, by itself.
    export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-${TMPDIR:-/tmp}/cupy-$(id -un)}
    say "job ${SLURM_JOB_ID:-without Slurm}, restart ${SLURM_RESTART_COUNT:-0}, $NODES nodes" \
        "(${SLURM_JOB_NODELIST:-$(hostname)}), $RANKS_PER_NODE ranks on each; $("${HPCMOE[@]}" --version)"
}

# ranks NODES COMMAND...: the command on RANKS_PER_NODE ranks on each of the first NODES nodes, to its end; returns
# their code
ranks() {
    local nodes=$1 code
    shift
    [ -z "$TOLD" ] || return 75     # to save, before there was anything to save
    local all=$((nodes * RANKS_PER_NODE)) cores=$((${SLURM_CPUS_ON_NODE:-0} / RANKS_PER_NODE))
    local -a words
    case ${LAUNCH[0]} in
    srun)
        # All are given, for what sbatch was given would be taken otherwise, and that is of the whole job. Cores: since
        # Slurm 22.05 a step does not take over how many a task has, and would put all ranks on the first ones.
        words=("${LAUNCH[@]}" "--nodes=$nodes" "--ntasks=$all" "--ntasks-per-node=$RANKS_PER_NODE"
               "--cpus-per-task=$((cores > 0 ? cores : 1))" "--cpu-bind=$CPU_BIND")
        ((GPUS_PER_NODE == 0)) || words+=("--gpus-per-node=$GPUS_PER_NODE")
        ;;
    mpirun) words=("${LAUNCH[@]}" -n "$all" --map-by "ppr:$RANKS_PER_NODE:node") ;;
    *) words=("${LAUNCH[@]}" -n "$all" -ppn "$RANKS_PER_NODE") ;;
    esac
    # In the background, for while bash waits for a program in the foreground it hears no signal.
    "${words[@]}" "$@" &
    STARTED=$!
    [ -z "$TOLD" ] || kill -USR1 "$STARTED" || true     # it came while there was nobody to tell
    while :; do
        HEARD=
        code=0
        wait "$STARTED" || code=$?
        [ -n "$HEARD" ] || break    # else it was the signal that ended the wait
    done
    STARTED=
    return "$code"
}

# A signal that reaches this shell is for the ranks. With --signal=USR1@300 Slurm tells srun's ranks itself, and not the
# shell; with B:USR1@300, and where scancel --batch or a person sends one, the shell alone. All launchers hand on USR1;
# TERM would have some of them end the ranks at once.
TOLD=
forward() {
    HEARD=$1 TOLD=$1
    say "signal $1: the ranks save and end"
    [ -z "${STARTED:-}" ] || kill -USR1 "$STARTED" 2>/dev/null || true
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# finish CODE: ends the script with the code of its ranks. 75 means that all that was done is saved, and the same
# command goes on from there: then the job first puts itself back into the queue.
finish() {
    local code=$1 job=${SLURM_JOB_ID:-} count=${SLURM_RESTART_COUNT:-0}
    # A rank that is told before it listens dies of it, when there is nothing to save yet: 138, or what mpiexec makes of
    # it.
    case $code in
    0 | 2 | 3 | 4 | 70 | 75) ;;
    138) code=75 ;;
    *) [ -z "$TOLD" ] || code=75 ;;
    esac
    if [ "$code" = 75 ] && [ -z "$job" ]; then
        say "saved: the same command goes on from here"
    elif [ "$code" = 75 ] && ((count >= RESTARTS)); then
        say "saved, but restarted $count times already: submit it again to go on, or allow more (RESTARTS in site.sh)"
    elif [ "$code" = 75 ]; then
        # The number of one task of an array may be that of the whole array, which would start all of it again.
        [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        # A job that somebody cancels saves its work as well, and must not come back.
        if [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
            say "saved: back into the queue, restart $((count + 1)) of at most $RESTARTS"
            scontrol requeue "$job" || say "the queue does not take it back: submit it again to go on"
        else
            say "saved, but the job is being ended: submit it again to go on"
        fi
    fi
    exit "$code"
}
