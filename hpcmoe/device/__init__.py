"""What runs on a GPU: CUDA kernels, each beside its wrapper, and NVIDIA's libraries.

Twins in NumPy are in `kernels` and `model`.

Arrays are CuPy's; bfloat16 is its bits, uint16. Work goes to the current stream, and functions return when it is begun.
"""
