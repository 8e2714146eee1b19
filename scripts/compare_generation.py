#!/usr/bin/env python3
"""Compares how fast llava, transformers and llama.cpp answer, and how far their logits are from float32's.

    python scripts/compare_generation.py --llava build/release/llava --model DIR --folder DIR
        [--rounds 5] [--tokens 32] [--threads N] [--skip transformers,llama.cpp]

DIR of --model is what `llava init` wrote in bfloat16 with Hugging Face's names; for the shape that targets
are stated for (1.1B decoder of TinyLlama's shape, CLIP ViT-L/14-336):

    llava init --shape llava-1.5-7b --hidden_size 2048 --intermediate_size 5632 --num_hidden_layers 22 \\
        --num_attention_heads 32 --num_key_value_heads 4 --tokenizer_text README.md --dtype bfloat16 --output_dir DIR

The Python needs numpy, torch, transformers, safetensors, gguf and llama-cpp-python. --folder is for files made
here and kept: the decoder as GGUF in BF16, F16, Q8_0 and Q4_0 (the head, and embeddings, in 8 bits there, as
llava has its head), a tiny model, and the rivals' best settings.

Rivals get their best of eager and sdpa (transformers), BF16 and F16 weights, flash attention or not, ubatch 512
or 1024 (llama.cpp), tried once and kept. Then all take turns on the same cores for some rounds, each
in a process of its own that warms up first. Printed are medians of the rounds' ratios, and the least and the
most. Prompts are one 336 px picture (576 tokens) and 64 of text; decode goes on from there.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

TEXT_TOKENS, PATCHES = 64, 576
PROMPT = TEXT_TOKENS + PATCHES


def run(command, threads):
    """Runs a program; returns (seconds, stdout)."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
                   "TRANSFORMERS_VERBOSITY": "error"}
    begin = time.time()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return time.time() - begin, done.stdout


def work(what, options, **more):
    """A rival's part, in a process of its own."""
    request = {"what": what, "model": str(options.model), "folder": str(options.folder),
               "tokens": options.tokens, "threads": options.threads, **more}
    _, out = run([sys.executable, __file__, "--worker", json.dumps(request)], options.threads)
    return json.loads(out.strip().splitlines()[-1])


def prompt_ids(count):
    return [1] + [5 + (37 * i) % 250 for i in range(count - 1)]


# ── The decoder as GGUF ──────────────────────────────────────────────────────────────────────────


def gguf_name(name):
    """The name of a weight of the decoder, or None for other parts."""
    if "language_model." in name:
        name = name.split("language_model.")[1].removeprefix("model.")
    elif not name.startswith("lm_head."):
        return None
    fixed = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
             "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
             "up_proj": "ffn_up", "down_proj": "ffn_down"}
    words = name.split(".")
    return f"blk.{words[1]}.{parts[words[-2]]}.weight"


def interleaved(weight, heads):
    """Rows of q or k in llama.cpp's order: pairs that are turned together lie side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(options, kind):
    import gguf
    import numpy as np
    from safetensors import safe_open

    path = options.folder / f"{kind}.gguf"
    if path.exists():
        return path
    text = json.loads((options.model / "config.json").read_text())["text_config"]
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_rope_dimension_count(text["head_dim"])
    writer.add_vocab_size(text["vocab_size"])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_]
    tokens += [f"t{i}" for i in range(len(tokens), text["vocab_size"])]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    types = gguf.GGMLQuantizationType
    for file in sorted(options.model.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                ours = gguf_name(name)
                if ours is None:
                    continue
                weight = weights.get_tensor(name).float().numpy()
                if ours.endswith(("attn_q.weight", "attn_k.weight")):
                    key = "num_attention_heads" if "attn_q" in ours else "num_key_value_heads"
                    weight = interleaved(weight, text[key])
                is_table = ours in ("token_embd.weight", "output.weight")
                type_ = types.F32 if weight.ndim == 1 else types.Q8_0 if is_table and kind == "Q4_0" else types[kind]
                data = gguf.quants.quantize(np.ascontiguousarray(weight), type_)
                writer.add_tensor(ours, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


# ── The rivals ───────────────────────────────────────────────────────────────────────────────────


def median_seconds(function, count=3):
    function()  # warms up
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def transformers_model(request, dtype):
    import torch
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(request["threads"])
    return AutoModelForImageTextToText.from_pretrained(
        request["model"], dtype=dtype, attn_implementation=request.get("attention", "eager")).eval()


def transformers_speed(request):
    import torch

    model = transformers_model(request, torch.bfloat16)
    image = model.config.image_token_id if hasattr(model.config, "image_token_id") else model.config.image_token_index
    ids = torch.tensor([[image] * PATCHES + prompt_ids(TEXT_TOKENS)])
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).bfloat16()
    words = torch.tensor([prompt_ids(PROMPT)])
    with torch.inference_mode():
        first = lambda: model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        ttft = median_seconds(first, 2)
        prefill = median_seconds(lambda: model(input_ids=words, use_cache=True, logits_to_keep=1), 2)
        state = first()
        times = []
        for _ in range(request["tokens"] + 2):
            begin = time.perf_counter()
            token = state.logits[:, -1:].argmax(-1)
            state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
            times.append(time.perf_counter() - begin)
    return {"ttft": ttft, "prefill": PROMPT / prefill, "decode": 1 / statistics.mean(times[2:])}


def transformers_logits(request):
    import numpy as np
    import torch

    model = transformers_model(request, torch.float32)
    with torch.inference_mode():
        np.save(request["to"], model(input_ids=torch.tensor([request["ids"]])).logits[0].numpy())
    return {}


def llama_model(request, **more):
    from llama_cpp import Llama

    return Llama(request["gguf"], n_ctx=1024, n_batch=1024, n_ubatch=request.get("ubatch", 512),
                 n_threads=request["threads"], n_threads_batch=request["threads"],
                 flash_attn=request.get("flash", False), verbose=False, **more)


def llama_speed(request):
    model, words = llama_model(request), prompt_ids(PROMPT)

    def prefill():
        model.reset()
        model.eval(words)

    seconds, times = median_seconds(prefill, 2), []
    for i in range(request["tokens"] + 2):
        begin = time.perf_counter()
        model.eval([5 + i])
        times.append(time.perf_counter() - begin)
    return {"prefill": PROMPT / seconds, "decode": 1 / statistics.mean(times[2:])}


def llama_logits(request):
    import numpy as np

    model = llama_model(request, logits_all=True)
    model.eval(request["ids"])
    np.save(request["to"], np.asarray(model.scores[:len(request["ids"])], dtype=np.float32))
    return {}


# ── Ours ─────────────────────────────────────────────────────────────────────────────────────────


def ours_speed(options, bits):
    common = ["-m", options.model, "--bits", bits, "--device", "cpu", "--threads", options.threads, "--json",
              "--quiet"]
    _, out = run([options.llava, "bench", "--what", "vision,prefill,decode", "--text_tokens", TEXT_TOKENS,
                  "--repetitions", 3, *common], options.threads)
    report = json.loads(out)
    rows = {row["what"]: row for row in report["results"]}
    _, out = run([options.llava, "run", "-p", "word " * TEXT_TOKENS, "--image", options.folder / "picture.bmp", "-n",
                  options.tokens + 1, "--ignore_eos", *common], options.threads)
    timings = json.loads(out)["timings"]
    return {"ttft": (rows["vision"]["ms_median"] + rows["prefill"]["ms_median"]) / 1000,
            "prefill": rows["prefill"]["tokens_per_s"],
            "decode": 1000 * (timings["decode_tokens"] - 1) / timings["decode_ms"],
            "share": rows["decode"]["share_of_read"], "read": rows["read"]["gb_per_s"],
            "error": report.get("logit_error"), "decode_error": report.get("decode_logit_error")}


def ours_logits(options, bits, dtype=None):
    """Logits [T, V] of a prompt, and its ids."""
    from safetensors.numpy import load_file

    dump = options.folder / "ours.safetensors"
    _, out = run([options.llava, "run", "-m", options.model, "--raw", "-p", "what shows this " * 12, "-n", 0, "--dump",
                  dump, "--bits", bits, "--device", "cpu", "--threads", options.threads, "--json", "--quiet",
                  *(["--dtype", dtype] if dtype else [])], options.threads)
    return load_file(dump)["logits"][0], json.loads(out)["prompt_ids"]


def start_seconds(options, model):
    return run([options.llava, "run", "-m", model, "-p", "hi", "-n", 1, "--device", "cpu", "--threads",
                options.threads, "--quiet"], options.threads)[0]


def read_seconds(files):
    begin = time.perf_counter()
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            room = bytearray(1 << 24)
            while stream.readinto(room):
                pass
    return time.perf_counter() - begin


def make_small_files(options):
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "tiny/config.json").exists():
        run([options.llava, "init", "--shape", "tiny", "--output_dir", options.folder / "tiny", "--quiet"], 1)
    side = 336
    header = b"BM" + (54 + 3 * side * side).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + side.to_bytes(4, "little") * 2 + (1).to_bytes(2, "little")
    header += (24).to_bytes(2, "little") + bytes(24)
    (options.folder / "picture.bmp").write_bytes(header + bytes(i * 31 % 251 for i in range(3 * side * side)))


# ── The comparison ───────────────────────────────────────────────────────────────────────────────


def choose(options):
    """The rivals' best settings for each figure: {"transformers": {"ttft": {...}, ...}, "16": {...}, ...}."""
    path = options.folder / "chosen.json"
    chosen = json.loads(path.read_text()) if path.exists() else {}
    tries = {}
    if "transformers" not in options.skip:
        tries["transformers"] = [("transformers_speed", {"attention": a}) for a in ("eager", "sdpa")]
    if "llama.cpp" not in options.skip:
        for bits, kinds in (("16", ("BF16", "F16")), ("8", ("Q8_0",)), ("4", ("Q4_0",))):
            tries[bits] = [("llama_speed", {"gguf": str(write_gguf(options, kind)), "flash": flash, "ubatch": ubatch})
                           for kind in kinds for flash in (False, True) for ubatch in (512, 1024)]
    for rival, settings in tries.items():
        if rival in chosen:
            continue
        found = [(work(what, options, **setting), setting) for what, setting in settings]
        chosen[rival] = {}
        for figure in found[0][0]:
            best = (min if figure == "ttft" else max)(found, key=lambda one: one[0][figure])
            chosen[rival][figure] = best[1]
            print(f"  {rival} {figure}: {best[0][figure]:.2f} with {best[1]}", flush=True)
        path.write_text(json.dumps(chosen))
    return {rival: chosen[rival] for rival in tries}


def rival_speed(options, what, best):
    """Each figure with its best setting; settings that are best for several run once."""
    results = {}
    for setting in {json.dumps(setting): setting for setting in best.values()}.values():
        found = work(what, options, **setting)
        results.update({figure: found[figure] for figure in best if best[figure] == setting})
    return results


def print_ratios(rounds, name, ours, theirs, figure):
    pairs = [(one[ours][figure], one[theirs][figure]) for one in rounds]
    ratios = [b / a if figure == "ttft" else a / b for a, b in pairs]
    unit = "s" if figure == "ttft" else "tokens/s"
    mine, other = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    print(f"{name}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}); medians "
          f"{mine:.2f} and {other:.2f} {unit}", flush=True)


def print_errors(options):
    import numpy as np

    whole, ids = ours_logits(options, 16, "float32")
    error = lambda logits, exact: np.linalg.norm(logits - exact) / np.linalg.norm(exact)
    to = str(options.folder / "logits.npy")
    exact = whole
    if "transformers" not in options.skip:
        work("transformers_logits", options, ids=ids, to=to)
        exact = np.load(to)
    print(f"logits of {len(ids)} tokens against float32's, relative norm of the error: "
          f"llava float32 {error(whole, exact):.1e}")
    for bits, kind in ((16, "BF16"), (8, "Q8_0"), (4, "Q4_0")):
        line = f"  {bits} bits: llava {error(ours_logits(options, bits)[0], exact):.5f}"
        if "llama.cpp" not in options.skip:
            work("llama_logits", options, ids=ids, to=to, gguf=str(write_gguf(options, kind)))
            line += f", llama.cpp {kind} {error(np.load(to), exact):.5f}"
        print(line, flush=True)


def print_starts(options):
    files = sorted(options.model.glob("*.safetensors"))
    tiny = [start_seconds(options, options.folder / "tiny") for _ in range(5)]
    print(f"start of a tiny model: {statistics.median(tiny):.2f} s ({min(tiny):.2f} to {max(tiny):.2f})")
    more = []
    for _ in range(3):
        reading = read_seconds(files)
        more.append(start_seconds(options, options.model) - reading)
    print(f"start to first token, without reading weights ({reading:.2f} s): {statistics.median(more):.2f} s "
          f"({min(more):.2f} to {max(more):.2f})", flush=True)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        request = json.loads(sys.argv[2])
        print(json.dumps(globals()[request["what"]](request)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llava", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in each round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side")
    parser.add_argument("--skip", default="", help="rivals to leave out: transformers, llama.cpp or both")
    options = parser.parse_args()
    options.skip = options.skip.split(",")
    make_small_files(options)
    chosen = choose(options)
    print_errors(options)
    print_starts(options)
    rounds = []
    for _ in range(options.rounds):
        one = {}
        for bits in ("16", "8", "4"):
            one[bits] = ours_speed(options, bits)
            for rival in {"16": ("transformers", "16")}.get(bits, (bits,)):
                if rival in chosen:
                    what = "transformers_speed" if rival == "transformers" else "llama_speed"
                    one["rival " + rival] = rival_speed(options, what, chosen[rival])
        rounds.append(one)
        print(json.dumps(one), flush=True)
    if "transformers" in chosen:
        for figure in ("ttft", "prefill", "decode"):
            print_ratios(rounds, f"{figure}, bfloat16, against transformers", "16", "rival transformers", figure)
    for bits in ("16", "8", "4"):
        for figure in ("prefill", "decode") if bits in chosen else ():
            print_ratios(rounds, f"{figure}, {bits} bits, against llama.cpp", bits, "rival " + bits, figure)
        print(f"decode, {bits} bits, of a plain read: {statistics.median(o[bits]['share'] for o in rounds):.0%} of "
              f"{statistics.median(o[bits]['read'] for o in rounds):.1f} GB/s")
    for bits in ("8", "4"):
        print_ratios(rounds, f"prefill, {bits} bits against 16, both llava", bits, "16", "prefill")
        print(f"  logits off by {rounds[0][bits]['error']:.2%} of their norm in a prompt, by "
              f"{rounds[0][bits]['decode_error']:.2%} in decode")


main()
