#!/usr/bin/env python3
"""Compares `llava run` with transformers on random models of every family and random pictures.

    python scripts/compare_transformers.py build/release/llava [--cases 100] [--seed 0] [--wide 8]

The Python needs torch 2.11, transformers 5.24, Pillow 10.3 (13 resamples some pictures otherwise), sentencepiece and
safetensors; no network. Each
case is a model folder of random sizes (heads, layers, rope scaling, biases, tied embeddings, selected
layers, projector) with a prompt of several pictures or a video. Held equal:
    pixel_values     bit for bit with the Pillow processors of transformers
    vision_features  within 1e-5 of the largest value
    logits           within 1e-4, over the whole prompt, in float32
    64 greedy tokens
and for what `llava convert` writes: transformers loads it with no missing or unexpected key and the same
logits; a folder taken there and back has every tensor's bytes.
"""
import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import sentencepiece
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil, LlavaNextImageProcessorPil

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import make_goldens_model as goldens  # noqa: E402

TOKENS, LOGITS, FEATURES = 64, 1e-4, 1e-5
WORDS = ["what", "is", "the", "colour", "of", "this", "round", "thing", "and", "where", "does", "it", "stand"]


def make_tokenizer(folder):
    lines = [" ".join(random.Random(i).choices(WORDS, k=9)) for i in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=300,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2)
    (folder / "tokenizer.vocab").unlink()


def make_pictures(case, folder, pick):
    """Pictures of the case's sizes; the same as frames of a video, of one size, where it has one."""
    paths = []
    sizes = [(80, 60)] * case["videos"][0] if case.get("videos") else case["images"]
    (folder / "frames").mkdir()
    for i, (width, height) in enumerate(sizes):
        small = Image.fromarray(np.random.default_rng(pick.randrange(10**9)).integers(
            0, 256, (5, 6, 3), dtype=np.uint8))
        paths.append(folder / "frames" / f"{i:03}.png")
        small.resize((width, height)).save(paths[-1])
    return paths


def processor_of(case, side, grids):
    if case["family"] == "llava_next":
        return LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size=side, image_grid_pinpoints=grids)
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def square(image):
    """LLaVA 1.2.2, mm_utils.py, expand2square."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(x * 255) for x in CLIPImageProcessorPil().image_mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def pixels_of(case, processor, paths):
    images = [Image.open(path).convert("RGB") for path in paths]
    if case["family"] == "original":
        images = [square(image) for image in images]
    return processor(images, return_tensors="pt", input_data_format="channels_last")


def spliced(ids, counts, stand_in):
    """The prompt's ids with as many stand-ins for each -200 as the picture has rows."""
    counts, row = iter(counts), []
    for token in ids:
        row += [stand_in] * next(counts) if token == -200 else [token]
    return torch.tensor([row])


class HuggingFace:
    def __init__(self, case, model):
        self.case, self.model = case, model
        self.grids = getattr(model.config, "image_grid_pinpoints", None)
        self.side = model.config.vision_config.image_size

    def save(self, folder):
        self.model.save_pretrained(folder)
        processor_of(self.case, self.side, self.grids).save_pretrained(folder)

    def run(self, ids, counts, pixels):
        model, config = self.model, self.model.config
        if self.case["family"] == "llava_next_video":
            inputs = {"input_ids": spliced(ids, counts, config.video_token_index),
                      "pixel_values_videos": pixels["pixel_values"][None]}
        else:
            inputs = {"input_ids": spliced(ids, counts, config.image_token_index), **pixels}
        tower = pixels["pixel_values"]
        if self.case["family"] == "llava_next":
            grids = [goldens.image_size_to_num_patches(size.tolist(), self.grids, self.side)
                     for size in pixels["image_sizes"]]
            tower = torch.cat([tiles[:count] for tiles, count in zip(tower, grids)])
        states = model.model.vision_tower(tower, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        cut = config.vision_feature_select_strategy == "default"
        states = torch.cat([states[i][:, cut:] for i in ([layers] if isinstance(layers, int) else layers)], -1)
        logits = model(**inputs).logits[0]
        goldens.forget_earlier_lengths(model.model.language_model.rotary_emb)
        model.generation_config.eos_token_id = None
        made = model.generate(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]),
                              max_new_tokens=TOKENS, do_sample=False)
        return tower, states, logits, made[0, inputs["input_ids"].shape[1]:].tolist()


class Original:
    grids = None

    def __init__(self, case):
        self.case, self.parts = case, goldens.original_parts(case)
        self.side = self.parts[0].config.image_size

    def save(self, folder):
        goldens.save_original(self.case, folder, *self.parts)

    def run(self, ids, counts, pixels):
        vision, projector, text = self.parts
        states = vision(pixels["pixel_values"], output_hidden_states=True).hidden_states[-2]
        states = {"patch": states[:, 1:], "cls_patch": states, "cls": states[:, :1]}[self.case["select"]]
        pictures = iter(projector(states))
        embeds = torch.cat([next(pictures) if token == -200 else text.model.embed_tokens(torch.tensor([token]))
                            for token in ids])[None]
        text.generation_config.eos_token_id = None
        made = text.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]),
                             max_new_tokens=TOKENS, do_sample=False)
        return pixels["pixel_values"], states, text(inputs_embeds=embeds).logits[0], made[0].tolist()


def llava(program, *words):
    done = subprocess.run([program, *map(str, words), "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, f"llava {' '.join(map(str, words))}: exit {done.returncode}: {done.stderr}"
    return done.stdout


def ask(program, folder, paths, is_video, prompt, dump):
    media = ["--video", paths[0].parent] if is_video else [w for path in paths for w in ("--image", path)]
    return json.loads(llava(program, "run", "-m", folder, *media, "-p", prompt, "--raw", "--json", "--dump", dump,
                            "-n", TOKENS, "--temp", 0, "--ignore_eos", "-c", 100_000, "--dtype", "float32"))


def same_tensors(a, b):
    """Whether two folders hold the same tensors, byte for byte; the tower may lie in its own folder."""
    def tensors(folder):
        return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    a, b = tensors(a), tensors(b)
    return all(name in b and torch.equal(tensor, b[name]) and tensor.dtype == b[name].dtype for name, tensor in a.items())


def check_conversions(program, case, folder, work, answer, logits, pixels):
    """original -> Hugging Face -> original; models of transformers' own begin as an original made by llava."""
    config = case.get("config", {})
    odd = not config.get("multimodal_projector_bias", True) or config.get("projector_hidden_act", "gelu") != "gelu"
    if odd or case.get("projector", "mlp2x_gelu") != "mlp2x_gelu" or case["select"] == "cls":
        return []  # one of the layouts cannot express it
    if case["family"] == "original":
        first = folder
    else:
        first = work / "original"
        llava(program, "convert", "-m", folder, "--to", "llava", "--output_dir", first)
    there, back = work / "there", work / "back"
    llava(program, "convert", "-m", first, "--to", "llava-hf", "--output_dir", there)
    llava(program, "convert", "-m", there, "--to", "llava", "--output_dir", back)
    faults = [] if same_tensors(first, back) else ["tensors changed on the way there and back"]
    model, info = AutoModelForImageTextToText.from_pretrained(there, output_loading_info=True, dtype=torch.float32)
    if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        faults.append(f"transformers loads with {info}")
    again = HuggingFace({**case, "family": "llava" if first == folder else case["family"]}, model.eval())
    made = again.run(answer["prompt_ids"], answer["image_tokens"], pixels)[2]
    # Rows from here on are made for <image>, <video> and padding.
    words = min(model.config.image_token_index, getattr(model.config, "video_token_index", 10**9))
    error = (made[:, :words] - logits[:, :words]).abs().max().item()
    return faults + ([f"converted logits differ by {error:.2g}"] if error > LOGITS else [])


def compare(program, number, seed, wide, work):
    case = {"dtype": torch.float32, "select": "patch", **goldens.random_case(number, seed)}
    pick = random.Random(case["seed"])
    text, vision = case["text_config"], case["vision_config"]
    text["vocab_size"] = 300 + pick.choice([8, 20, 100])
    for part in (text, vision):
        part["hidden_size"] *= wide
        part["intermediate_size"] = part.get("intermediate_size", 24) * wide
    torch.manual_seed(case["seed"])
    peer = Original(case) if case["family"] == "original" else HuggingFace(case, goldens.hugging_face_model(case))
    folder = work / "model"
    peer.save(folder)
    make_tokenizer(folder)
    paths = make_pictures(case, work, pick)
    is_video = bool(case.get("videos"))
    marks = ["<video>"] if is_video else ["<image>"] * len(paths)
    prompt = " ".join(word for mark in marks for word in [*pick.choices(WORDS, k=pick.randint(1, 5)), mark])
    prompt += " " + " ".join(pick.choices(WORDS, k=4))
    answer = ask(program, folder, paths, is_video, prompt, work / "dump.safetensors")
    ours = load_file(work / "dump.safetensors")
    pixels = pixels_of(case, processor_of(case, peer.side, peer.grids), paths)
    with torch.no_grad():
        tower, states, logits, ids = peer.run(answer["prompt_ids"], answer["image_tokens"], pixels)
        features = ((ours["vision_features"] - states).abs().max() / states.abs().max()).item()
        error = (ours["logits"][0] - logits).abs().max().item()
        faults = check_conversions(program, case, folder, work, answer, logits, pixels)
    if not torch.equal(ours["pixel_values"], tower):
        faults.append("pixel_values differ")
    if features > FEATURES:
        faults.append(f"vision features differ by {features:.2g}")
    if error > LOGITS:
        faults.append(f"logits differ by {error:.2g}")
    if answer["ids"] != ids:
        faults.append(f"greedy ids differ from token {next(i for i, (a, b) in enumerate(zip(answer['ids'], ids)) if a != b)}")
    rope = (text.get("rope_scaling") or {})
    print(f"{number:3} {case['family']:16} {case['text']:7} rope {rope.get('rope_type', rope.get('type', 'plain')):8}"
          f" logits {error:.1e} features {features:.1e} {'; '.join(faults) or 'ok'}", flush=True)
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--wide", type=int, default=1, help="times all widths")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps the models; default: a temporary folder")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bad = 0
    for number in range(args.first, args.first + args.cases):
        work = (args.folder or pathlib.Path(tempfile.mkdtemp())) / str(number)
        work.mkdir(parents=True)
        bad += bool(compare(args.llava, number, args.seed, args.wide, work))
        if not args.folder:
            shutil.rmtree(work.parent)
    print(f"{args.cases - bad} of {args.cases} cases agree")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
