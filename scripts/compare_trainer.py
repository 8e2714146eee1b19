#!/usr/bin/env python3
"""Trains one model on one set of data with llava and with transformers' Trainer, by turns, and
prints the ratio of their speeds and of their peak memories.

    python scripts/compare_trainer.py --llava build/release/llava --folder DIR [--stage 1|2]
        [--dtype float32|bfloat16] [--pairs 3] [--steps 6] [--search]

The Python needs torch, transformers, accelerate and Pillow. The model has 48M parameters (a CLIP tower
of 8 layers, an MLP, a LLaMA of 8 layers), weights are random. Samples have 144 rows of a picture and a
text as uneven as instruction data's (lognormal, mean 75 tokens, coefficient of variation 0.8); one in
sixteen has no picture. Both sides take the same 8 samples in a step, in the file's order. llava reads and
decodes its JPEGs while it trains; the Trainer is given pixels and ids made beforehand.

Settings of the Trainer: --search tries them all and keeps the fastest for later calls in DIR: attention
(eager, sdpa), rows of a micro-batch (1, 2, 4, 8, accumulated to 8), and for bfloat16 autocast over fp32
weights or weights in bfloat16 (which keeps no fp32 masters, unlike llava). Its optimizer is
adamw_torch_fused, its batches are padded on the right to their longest row.

The first step of a run is not timed. Peak memory is the process's largest resident set.
"""
import argparse
import itertools
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import time

ROWS, SIDE, PATCHES, SAMPLES = 8, 168, 144, 96
WORDS = ("the a of red blue green small large round square picture shows left right above below near "
         "there is are one two three what where how many which does can see you it this that and or not "
         "person dog street table tree water sky house").split()
SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions. USER: ASSISTANT:")


def run(command, **more):
    """Runs a program; returns (seconds, peak bytes, stdout)."""
    begin = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {process.returncode}\n{err[-3000:]}")
    return time.time() - begin, usage.ru_maxrss * 1024, out


# ── The world ──────────────────────────────────────────────────────────────────────────────────


def sentence(source, count):
    return " ".join(source.choice(WORDS) for _ in range(count))


def make_world(folder, llava):
    import numpy as np
    import torch
    from PIL import Image
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    source = random.Random(1)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join([sentence(source, 12), SYSTEM][i % 2] for i in range(4000)))
    run([llava, "init", "--shape", "tiny", "--tokenizer_text", folder / "corpus.txt", "--output_dir",
         folder / "tiny"])
    records = []
    for i in range(SAMPLES):
        variance = np.log(1 + 0.8 ** 2)
        tokens = source.lognormvariate(np.log(75) - variance / 2, variance ** 0.5)
        count = min(200, max(3, round(tokens / 3)))  # this tokenizer cuts a word into three
        pictured = i % 16 != 15
        question, answer = max(1, count // 4), max(2, count - count // 4)
        records.append({"id": str(i), "conversations": [
            {"from": "human", "value": ("<image>\n" if pictured else "") + sentence(source, question)},
            {"from": "gpt", "value": sentence(source, answer)}]})
        if pictured:
            name = f"{i}.jpg"
            low = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(low).resize((336, 336), Image.BICUBIC).save(images / name, quality=90)
            records[-1]["image"] = name
    (folder / "data.json").write_text(json.dumps(records))

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=8,
                                       num_attention_heads=4, image_size=SIDE, patch_size=14),
        text_config=LlamaConfig(vocab_size=16000, hidden_size=512, intermediate_size=1376,
                                num_hidden_layers=8, num_attention_heads=8, max_position_embeddings=1024),
        image_token_index=15999, projector_hidden_act="gelu")
    model = LlavaForConditionalGeneration(config).float()
    model.save_pretrained(folder / "model")
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    (folder / "model/preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": SIDE},
         "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True,
         "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std,
         "do_convert_rgb": True, "resample": 3}))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        if (folder / "tiny" / name).exists():
            (folder / "model" / name).write_bytes((folder / "tiny" / name).read_bytes())

    rows = []
    for i, record in enumerate(records):
        _, _, out = run([llava, "data", "show", "--data_path", folder / "data.json", "--image_folder", images,
                         "-m", folder / "model", "--conv_mode", "v1", "--index", str(i), "--json"])
        shown = json.loads(out)
        ids, labels = [], []
        for token, label in zip(shown["ids"], shown["labels"]):
            ids += [15999] * PATCHES if token == -200 else [token]
            labels += [-100] * PATCHES if token == -200 else [label]
        pixels = None
        if "image" in record:
            picture = Image.open(images / record["image"]).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
            pixels = (np.asarray(picture, dtype=np.float32) / 255 - mean) / std
            pixels = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1).contiguous()
        rows.append({"ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixels": pixels})
    torch.save(rows, folder / "rows.pt")
    lengths = [len(row["ids"]) for row in rows]
    learned = sum(int((row["labels"] >= 0).sum()) for row in rows)
    batches = [lengths[i:i + ROWS] for i in range(0, SAMPLES, ROWS)]
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "tokens": sum(lengths),
             "shortest": min(lengths), "longest": max(lengths), "learned": learned,
             "padded_by_8": sum(max(batch) * len(batch) for batch in batches) / sum(lengths)}
    (folder / "facts.json").write_text(json.dumps(facts))


# ── The two sides ──────────────────────────────────────────────────────────────────────────────


def ours(folder, options):
    """Seconds a step and loss of each step but the first, and peak bytes."""
    output = folder / "ours"
    command = [options.llava, "train", "--model_name_or_path", folder / "model", "--data_path",
               folder / "data.json", "--image_folder", folder / "images", "--output_dir", output,
               "--overwrite_output_dir", "true", "--version", "v1", "--shuffle", "false",
               "--per_device_train_batch_size", str(options.rows), "--gradient_accumulation_steps",
               str(ROWS // options.rows), "--max_steps", str(options.steps), "--learning_rate", "1e-4",
               "--warmup_ratio", "0", "--save_strategy", "no", "--device", "cpu", "--logging_steps", "1", "--threads",
               str(options.threads)]
    command += ["--tune_mm_mlp_adapter", "true"] if options.stage == 1 else []
    command += ["--bf16", "true"] if options.dtype == "bfloat16" else []
    _, peak, _ = run(command)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    at_end = [line["mem_peak"] for line in steps][-1]
    return {"seconds": [s["step_time"] for s in steps][1:], "losses": [s["loss"] for s in steps],
            "peak": peak, "peak_of_steps": at_end,
            "data_share": sum(s["data_time"] for s in steps[1:]) / sum(s["step_time"] for s in steps[1:])}


def theirs(folder, options, setting):
    request = {"folder": str(folder), "stage": options.stage, "dtype": options.dtype,
               "steps": options.steps, **setting}
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1",
                   "OMP_NUM_THREADS": str(options.threads)}
    _, peak, out = run([sys.executable, __file__, "--worker", json.dumps(request)], env=environment)
    result = json.loads(out.strip().splitlines()[-1])
    result["peak"] = peak
    return result


def worker(request):
    import torch
    from transformers import (LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments)

    folder = pathlib.Path(request["folder"])
    rows = torch.load(folder / "rows.pt")
    bf16 = request["dtype"] == "bfloat16"
    model = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", attn_implementation=request["attention"],
        dtype=torch.bfloat16 if bf16 and not request["autocast"] else torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("multi_modal_projector" in name or
                                 (request["stage"] == 2 and "vision_tower" not in name))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def collate(batch):
        longest = max(len(row["ids"]) for row in batch)
        pad = lambda name, value: torch.stack([torch.nn.functional.pad(
            row[name], (0, longest - len(row[name])), value=value) for row in batch])
        made = {"input_ids": pad("ids", 0), "labels": pad("labels", -100),
                "attention_mask": torch.stack([(torch.arange(longest) < len(row["ids"])).long()
                                               for row in batch])}
        pixels = [row["pixels"] for row in batch if row["pixels"] is not None]
        if pixels:
            made["pixel_values"] = torch.stack(pixels).to(model.dtype)
        return made

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, **more):  # batches without a picture reach no projector
            loss = super().compute_loss(model, inputs, **more)
            return loss if loss.requires_grad else loss + 0 * trained[0].sum()

    class Clock(TrainerCallback):
        ends, losses = [], []

        def on_step_end(self, *_args, **_more):
            self.ends.append(time.time())

        def on_log(self, _arguments, _state, _control, logs=None, **_more):
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"), per_device_train_batch_size=request["rows"],
        gradient_accumulation_steps=ROWS // request["rows"], max_steps=request["steps"], learning_rate=1e-4,
        lr_scheduler_type="cosine", warmup_steps=0, weight_decay=0.0, optim="adamw_torch_fused",
        bf16=bf16 and request["autocast"], use_cpu=True, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0)
    InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
    seconds = [b - a for a, b in zip(clock.ends, clock.ends[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "losses": clock.losses, "peak_of_steps": peak}))


# ── The comparison ─────────────────────────────────────────────────────────────────────────────


def speed(result):
    return ROWS * len(result["seconds"]) / sum(result["seconds"])


def search(folder, options, chosen):
    found = []
    rows, short = options.tried_rows, argparse.Namespace(**{**vars(options), "steps": 3})
    casts = [True, False] if options.dtype == "bfloat16" else [False]
    for attention, row, autocast in itertools.product(["eager", "sdpa"], rows, casts):
        setting = {"attention": attention, "rows": row, "autocast": autocast}
        result = theirs(folder, short, setting)
        found.append((speed(result), setting))
        print(f"  {setting}: {found[-1][0]:.2f} samples/s, {result['peak'] / 1e9:.2f} GB", flush=True)
    chosen[f"{options.stage} {options.dtype}"] = max(found, key=lambda one: one[0])[1]
    (folder / "chosen.json").write_text(json.dumps(chosen))


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        return worker(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llava", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2, help="of llava's micro-batches; 1, 2, 4 or 8 (more memory, and 8 to 15 % faster)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of either side")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--tried_rows", type=int, nargs="*", default=[1, 2, 8])
    options = parser.parse_args()
    folder = options.folder
    if not (folder / "facts.json").exists():
        make_world(folder, options.llava)
    facts = json.loads((folder / "facts.json").read_text())
    print(f"{facts['parameters'] / 1e6:.1f}M parameters; {SAMPLES} samples of {facts['shortest']} to "
          f"{facts['longest']} tokens, {facts['tokens'] / SAMPLES:.0f} on average; padding to the longest of "
          f"{ROWS}: {facts['padded_by_8']:.2f} x the tokens", flush=True)
    chosen = {}
    if (folder / "chosen.json").exists():
        chosen = json.loads((folder / "chosen.json").read_text())
    if options.search:
        search(folder, options, chosen)
    setting = chosen.get(f"{options.stage} {options.dtype}",
                         {"attention": "sdpa", "rows": 8, "autocast": True})
    print(f"stage {options.stage}, {options.dtype}, {options.threads} threads; the Trainer with {setting}", flush=True)
    speeds, memories = [], []
    for _ in range(options.pairs):
        a, b = ours(folder, options), theirs(folder, options, setting)
        speeds.append(speed(a) / speed(b))
        memories.append(a["peak"] / b["peak"])
        print(f"  llava {speed(a):6.2f} samples/s {a['peak'] / 1e9:5.2f} GB (steps alone "
              f"{a['peak_of_steps'] / 1e9:.2f}), data {100 * a['data_share']:.1f} %; Trainer {speed(b):6.2f} "
              f"samples/s {b['peak'] / 1e9:5.2f} GB; losses {a['losses'][0]:.4f} {b['losses'][0]:.4f} ... "
              f"{a['losses'][-1]:.4f} {b['losses'][-1]:.4f}", flush=True)
    print(f"median of {options.pairs}: {statistics.median(speeds):.2f} x the samples/s "
          f"({min(speeds):.2f} to {max(speeds):.2f}), {statistics.median(memories):.2f} x the peak memory")


main()
