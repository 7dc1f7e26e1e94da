# shellcheck shell=bash disable=SC2034   # the scripts read the variables
# What is particular to your site: choose one of the examples below, and edit it once. Then, in the shell where you type
# sbatch,
#
#     . jobs/site.sh
#     sbatch --nodes=4 --time=2:00:00 jobs/run.sbatch job.toml
#
# sbatch itself reads the SBATCH_* variables, so no script has to be edited; the scripts read this file again inside the
# job.

EXAMPLE=pmi2-mpich          # pmi2-mpich, pmix-openmpi, mpiexec-mpich, mpirun-openmpi, cray or workstation: see below

# Whom to charge and where to queue: take away the # and give your own.
# export SBATCH_ACCOUNT=project SBATCH_PARTITION=gpu SBATCH_QOS=normal SBATCH_TIMELIMIT=1:00:00

# GPUs of a node: one rank for each. On a partition without GPUs 0, and as many ranks as you want (one for each NUMA
# domain, say).
GPUS_PER_NODE=4
RANKS_PER_NODE=$GPUS_PER_NODE

# How srun binds ranks to cores. Ranks of a node take its GPUs in turn, rank 0 the first: so where GPU i hangs on NUMA
# domain i, as on Grace Hopper nodes, map_ldom:0,1,2,3 puts each rank beside its GPU. `nvidia-smi topo -m` shows which
# is where.
CPU_BIND=cores

# How often a job that ran into its time limit may put itself back into the queue: a job that makes no progress must
# end.
RESTARTS=20

# The program. In a container: HPCMOE=(apptainer exec --nv hpcmoe.sif hpcmoe), see hpcmoe.def.
HPCMOE=(hpcmoe)

# Where this file is: jobs find it from whatever folder they were submitted.
HPCMOE_SITE=$(realpath "${BASH_SOURCE[0]:-$0}")
export HPCMOE_SITE
# `make run` leaves an hpcmoe with an MPI from PyPI here; where you installed another one, put its folder first.
PATH=$(dirname "$(dirname "$HPCMOE_SITE")")/.venv/bin:$PATH

# What must be loaded before ranks start. Defined here and called inside the job only: sbatch hands on the environment
# of the shell that it is typed in, and a job should not depend on what happened to be loaded there.
modules() { :; }

unset SBATCH_SIGNAL SBATCH_GPUS_PER_NODE    # what another example set, if this is the second one in this shell
case $EXAMPLE in
pmi2-mpich)                 # Slurm starts the ranks of PyPI's MPICH, as make run has it. Tested: make test-slurm
    LAUNCH=(srun --mpi=pmi2)                        # the one of Slurm's ways that this MPICH speaks
    ;;
pmix-openmpi)               # Slurm with PMIx starts the ranks of Open MPI. Tested, but for GPUs: make test-slurm
    LAUNCH=(srun --mpi=pmix)                        # without it: as many jobs of one rank; hpcmoe notices, and ends
    modules() {
        module purge                                # nothing from the shell where sbatch was typed
        module load openmpi/5 cuda                  # CUDA-aware: ompi_info --parsable --all | grep cuda_support:value
        export MPI4PY_LIBMPI=libmpi.so.40           # the module's library, and no wheel's
        export OMPI_MCA_pml=ucx                     # the transport that knows GPUs
    }
    ;;
mpiexec-mpich)              # MPICH's own mpiexec, where Slurm has no PMI. Tested: make test-slurm
    LAUNCH=(mpiexec)                                # it finds Slurm's nodes by itself
    # The script alone is told that its time is up, and tells mpiexec: a signal to the job's steps ends mpiexec's
    # daemons.
    export SBATCH_SIGNAL=B:USR1@300
    ;;
mpirun-openmpi)             # Open MPI's mpirun, where its Slurm has no PMIx. Tested, but for GPUs: make test-slurm
    # Where ranks that live are to go on when one dies (checkpoint.on_failure = "shrink" in the job): (mpirun --with-ft
    # ulfm), and OMPI_MCA_pml=ob1 below, for UCX knows of no dead ranks.
    LAUNCH=(mpirun)
    export SBATCH_SIGNAL=B:USR1@300                 # as above
    modules() {
        module purge
        module load openmpi/5 cuda
        export MPI4PY_LIBMPI=libmpi.so.40 OMPI_MCA_pml=ucx
    }
    ;;
cray)                       # Cray MPICH on Slingshot, four A100 of 80 GB a node. Not tested here
    LAUNCH=(srun)                                   # the site's default, cray_shasta
    # GPU 0 hangs on the last NUMA domain there: the rank that takes it must sit there too, and so on.
    CPU_BIND=map_ldom:3,2,1,0
    modules() {
        module load PrgEnv-gnu cudatoolkit craype-accel-nvidia80
        module load cray-mpich-abi                  # the library under MPICH's names, which mpi4py looks for
        export MPICH_GPU_SUPPORT_ENABLED=1          # or MPI takes addresses on the GPU for the host's, and crashes
        # GPU support is a library that compiled programs are linked with; Python has to be given it.
        export LD_PRELOAD=$CRAY_MPICH_ROOTDIR/gtl/lib/libmpi_gtl_cuda.so
        export MPICH_OFI_NIC_POLICY=GPU             # each rank takes the network card beside its GPU
        export FI_CXI_RX_MATCH_MODE=hybrid          # many ranks and small messages run out of the card's own matching
        export FI_MR_CACHE_MONITOR=userfaultfd      # the default watch of freed memory can hang beside GPU memory
    }
    ;;
workstation)                # No Slurm: bash jobs/run.sbatch job.toml. Tested: make test-slurm
    LAUNCH=(mpiexec)
    ;;
*)
    echo "$HPCMOE_SITE: EXAMPLE=$EXAMPLE is none of its examples" >&2
    return 2
    ;;
esac

# GPUs are asked for by node and never by task: a task that sees its own GPU alone cannot reach its neighbours' memory,
# and CUDA's direct copies between the GPUs of a node fail. hpcmoe gives each rank its own.
if ((GPUS_PER_NODE > 0)); then
    export SBATCH_GPUS_PER_NODE=$GPUS_PER_NODE
fi
