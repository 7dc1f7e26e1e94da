"""hpcmoe: Mixture-of-Experts inference as a batch job, one expert per GPU and layer, over MPI.

Notation, used in every docstring: T tokens of a micro-batch on one rank, H hidden, I expert hidden,
E experts, K experts per token, L layers, R ranks, S slots (an expert on a rank), B sequences,
P prompts, V vocabulary. Times are in seconds, sizes in bytes.
"""

__version__ = "0.1.0"
