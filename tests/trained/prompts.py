"""Make prompts of texts that the small models never saw: windows of bytes, as JSONL for `hpcmoe prompts`.

    python tests/trained/prompts.py prompts.jsonl --count 256 --tokens 192
    python tests/trained/prompts.py prompts.jsonl --files a.txt b.txt

Without --files they are of the held-out files of Python's standard library. Each begins with a line.
"""

import argparse
import json
import random
from pathlib import Path

import texts


def windows(found: dict[str, bytes], count: int, tokens: int, seed: int) -> list[dict[str, object]]:
    """Prompts from random places of texts, by their names; each text as often as it is long."""
    rng = random.Random(seed)
    names = sorted(name for name, text in found.items() if len(text) >= tokens)
    if not names:
        raise SystemExit(f"no text has {tokens} bytes: give other files, or less --tokens")
    records: list[dict[str, object]] = []
    for name in rng.choices(names, [len(found[name]) for name in names], k=count):
        text = found[name]
        last = len(text) - tokens
        begin = text.rfind(b"\n", 0, rng.randint(0, last) + 1) + 1
        begin = min(begin, last)
        records.append({"id": f"{name}:{begin}", "tokens": list(text[begin:begin + tokens])})
    return records


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--files", type=Path, nargs="+", help="texts; else the held-out ones of the standard library")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="bytes of each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    paths = args.files or [path for path in texts.python_sources() if texts.held_out(path)]
    found = {path.name: text for path, text in texts.read(paths).items()}
    records = windows(found, args.count, args.tokens, args.seed)
    args.output.write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"{args.output}: {len(records)} prompts of {args.tokens} bytes from {len(found)} texts")


if __name__ == "__main__":
    main()
