#!/usr/bin/env python3
"""Records the orders that haotian-liu/LLaVA's sampler makes, for tests/data.

    git clone https://github.com/haotian-liu/LLaVA && git -C LLaVA checkout c121f0432da27facab705978f83c4ada465e46fd
    pip install torch transformers==4.37.2
    PYTHONPATH=LLaVA python3 scripts/make_goldens_data.py tests/golden/data

The functions of llava/train/llava_trainer.py run as they are, but torch.randperm is replaced by the
generator of src/data/random.h, so that the orders can be compared entry by entry."""
import json, pathlib, random, sys

import torch
from llava.train import llava_trainer

MASK, STEP = 2**64 - 1, 0x9E3779B97F4A7C15


def mixed(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


class Random:
    def __init__(self, seed, stream):
        self.state = (mixed(seed + STEP & MASK) + mixed(stream + 2 * STEP & MASK)) & MASK

    def below(self, bound):
        while True:
            self.state = self.state + STEP & MASK
            product = mixed(self.state) * bound
            if product & MASK >= 2**64 % bound:
                return product >> 64

    def permutation(self, count):
        order = list(range(count))
        for i in range(count, 1, -1):
            k = self.below(i)
            order[i - 1], order[k] = order[k], order[i - 1]
        return order


def record(lengths, rows, parts, seed, epoch):
    generator = Random(seed, epoch)
    torch.randperm = lambda count, generator=None, own=generator: torch.tensor(own.permutation(count))
    order = llava_trainer.get_modality_length_grouped_indices(lengths, rows, parts)
    return {"lengths": lengths, "rows": rows, "parts": parts, "seed": seed, "epoch": epoch,
            "order": order}


random.seed(7)
cases = []
for count, rows, parts, kinds in [(1, 1, 1, "p"), (7, 2, 1, "p"), (24, 2, 3, "pt"), (25, 2, 3, "pt"), (40, 1, 8, "pt"),
                                  (61, 4, 2, "ppt"), (64, 4, 4, "pt"), (50, 3, 4, "t"), (33, 2, 4, "p"), (90, 2, 4, "pppt")]:
    lengths = [random.choice([1, 5, 12, 12, 40, 200]) + random.randrange(9) for _ in range(count)]
    lengths = [n if random.choice(kinds) == "p" else -n for n in lengths]
    cases.append(record(lengths, rows, parts, random.randrange(2**32), random.randrange(3)))
text = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
pathlib.Path(sys.argv[1], "orders.json").write_text("[\n" + text + "\n]\n")
print(len(cases), "orders")
