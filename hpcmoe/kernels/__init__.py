"""One file per kernel. Each takes activations of the compute dtype (float32 or bfloat16) and float32 weights,
computes in float32, and rounds where Hugging Face's eager modules round."""
