"""Whether each row is computed alone.

The last bits of a matrix product depend on its shape, and so on how many rows happen to meet on a rank. Where rows are
computed alone, in products of a fixed shape, results have equal bits at any number of ranks, placement,
exchange and schedule. It is a state of the process, as the number of BLAS threads is, which must then be one.
"""

_alone = False


def compute_alone(on: bool) -> None:
    """Sets it for all kernels of this process (`compute.reproducible`)."""
    global _alone
    _alone = on
    if on:
        from threadpoolctl import threadpool_limits
        threadpool_limits(1)


def alone() -> bool:
    """Whether it is set."""
    return _alone
