"""PyTorch's side of the rows, in a Python of its own: a row's name on stdin, seconds of one layer on stdout.

"experts ROWS", "routing T" or "combine T"; before the first one it says its version. Weights are rotated as ours are;
the first run of a row makes it.
"""

import sys

import torch
import torch.nn.functional as F

H, WIDTH, E, K = 7168, 2048, 256, 8
EXPERT_LAYERS, LAYERS = 16, 4


def some(*shape):
    """Random bfloat16 on the GPU, of variance 1 / width."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * shape[-1] ** -0.5


def experts(rows):
    """The expert stage through a CUDA graph."""
    x = some(rows, H) * H ** 0.5
    layers = [(some(2 * WIDTH, H), some(H, WIDTH)) for _ in range(EXPERT_LAYERS)]

    def work():
        for gate_up, down in layers:
            gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
            F.linear(F.silu(gate) * up, down)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay, EXPERT_LAYERS


def choice(x, gate):
    """Experts and weights `[T, K]`, and where the row of each lies in the order of the experts."""
    weight, expert = torch.topk(torch.softmax(F.linear(x, gate).float(), dim=-1), K)
    weight = weight / weight.sum(dim=-1, keepdim=True)
    return expert, weight, torch.argsort(expert.flatten(), stable=True)


def routing(tokens):
    """Gate, order and pack."""
    layers = [(some(tokens, H) * H ** 0.5, some(E, H)) for _ in range(LAYERS)]
    one = torch.ones(tokens * K, dtype=torch.int64, device="cuda")

    def work():
        for x, gate in layers:
            expert, _, order = choice(x, gate)
            torch.zeros(E, dtype=torch.int64, device="cuda").scatter_add_(0, expert.flatten(), one)
            x.index_select(0, order // K)
    return work, LAYERS


def combine(tokens):
    """Answers home, weighted, summed and added to the residual."""
    layers = []
    for _ in range(LAYERS):
        x = some(tokens, H) * H ** 0.5
        _, weight, order = choice(x, some(E, H))
        layers.append((x, weight.to(torch.bfloat16)[:, None], torch.argsort(order)))
    answers = [some(tokens * K, H) for _ in range(2)]

    def work():
        for n, (x, weight, home) in enumerate(layers):
            x.add_(torch.bmm(weight, answers[n % 2].index_select(0, home).view(tokens, K, H)).squeeze(1))
    return work, LAYERS


def main():
    """Answers until stdin ends. One row's memory is held at a time."""
    row, made = "", None
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    print(torch.__version__, flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            if line != row:
                made = None
                torch.cuda.empty_cache()
                name, size = line.split()
                row, made = line, {"experts": experts, "routing": routing, "combine": combine}[name](int(size))
            work, layers = made
            work()
            begin.record()
            work()
            end.record()
            end.synchronize()
            print(begin.elapsed_time(end) / 1000 / layers, flush=True)


if __name__ == "__main__":
    main()
