#!/usr/bin/env python3
"""Compares the pixels that `llava run` gives its model with Pillow 10.3 and transformers, bit for bit,
and the time that takes.

    python scripts/compare_pictures.py build/release/llava [--images 500] [--seed 0]
    python scripts/compare_pictures.py build/release/llava --speed

The Python needs Pillow 10.3, numpy, transformers 5.24 (with torch), sentencepiece and safetensors. Pictures
have random sizes of 1 to 3000 pixels and every mode: gray, alpha, palettes, CMYK, 16 bits, 1 bit; as PNG,
JPEG, WebP, BMP, GIF, TGA and PPM. Each is cut as CLIP does (shortest edge, center crop), padded as LLaVA 1.5
does, and tiled as LLaVA-NeXT does; pixel_values must be equal in float32, and with them the resampled bytes.

--speed: preprocessing of a 640x480 JPEG to 336 pixels, one core, beside Pillow and numpy in the same minute.
"""
import argparse
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))

SIDE, PATCH, BATCH = 336, 168, 20
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MODES = ["RGB", "RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16"]
FORMATS = {"RGB": ["PNG", "JPEG", "WEBP", "BMP", "TGA", "PPM", "GIF"], "L": ["PNG", "JPEG", "BMP", "TGA", "PPM", "GIF"],
           "LA": ["PNG", "TGA"], "RGBA": ["PNG", "WEBP", "TGA"], "P": ["PNG", "GIF", "BMP", "TGA"], "1": ["PNG", "BMP", "PPM"],
           "CMYK": ["JPEG"], "I;16": ["PNG"]}


def random_picture(pick, folder, number):
    side = lambda: round(3000 ** pick.random()) if pick.random() < 0.5 else pick.randint(1, 3000)
    width, height = side(), side()
    mode = pick.choice(MODES)
    kind = pick.choice(FORMATS[mode])
    rng = np.random.default_rng(pick.randrange(10**9))
    small = rng.integers(0, 256, (min(height, 40), min(width, 40), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), pick.choice([Image.BICUBIC, Image.NEAREST]))
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image.convert("L"), dtype=np.uint16) * pick.choice([1, 2, 257])))
    elif mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    else:
        image = image.convert(mode)
    path = folder / f"{number:03}-{mode.replace(';', '')}-{width}x{height}.{kind.lower()}"
    options = {"JPEG": {"quality": pick.randint(30, 100), "progressive": pick.random() < 0.3},
               "WEBP": {"lossless": pick.random() < 0.5, "method": 0}}.get(kind, {})
    image.save(path, kind, **options)
    return path


def make_model(program, folder, text, **config):
    """A model whose tiles have 4 features, so that many pictures fit one prompt."""
    llava(program, "init", "--shape", "tiny", "--output_dir", folder, "--tokenizer_text", text, "--tokenizer_size", 300,
          "--image_size", SIDE,
          "--patch_size", PATCH, "--max_position_embeddings", 4096, "--layout", "hf",
          *[word for key, value in config.items() for word in (f"--{key}", value)])


def llava(program, *words):
    done = subprocess.run([program, *map(str, words), "--quiet"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stdout


def ours(program, model, paths, dump):
    words = [word for path in paths for word in ("--image", path)]
    answer = json.loads(llava(program, "run", "-m", model, "-p", "hello", "-n", 0, "--dump", dump, "--json", "--threads", 1,
                              "-c", 100_000, *words))
    return load_file(dump)["pixel_values"], answer["timings"]["image_ms"]


def square(image):
    """LLaVA 1.2.2, mm_utils.py, expand2square with CLIP's mean."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def compare(program, work, count, seed):
    from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil

    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tiler = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=GRIDS, do_pad=False)
    peers = {
        "square": lambda image: clip([image], input_data_format="channels_last", return_tensors="np")["pixel_values"],
        "pad": lambda image: clip([square(image)], input_data_format="channels_last", return_tensors="np")["pixel_values"],
        "anyres": lambda image: tiler([image], input_data_format="channels_last", return_tensors="np")["pixel_values"][0],
    }
    pick = random.Random(seed)
    paths = [random_picture(pick, work, number) for number in range(count)]
    bad = 0
    for aspect, peer in peers.items():
        equal = 0
        for first in range(0, count, BATCH):
            part = paths[first:first + BATCH]
            pixels, at = ours(program, work / aspect, part, work / "dump.safetensors")[0], 0
            for path in part:
                want = peer(Image.open(path).convert("RGB"))
                same = np.array_equal(pixels[at:at + len(want)], want)
                at += len(want)
                equal += same
                if not same:
                    print(f"{aspect}: {path.name} differs")
            assert at == len(pixels), f"{aspect}: another number of tiles"
        print(f"{aspect:7} {equal} of {count} pictures equal", flush=True)
        bad += count - equal
    return bad


def peer_speed(data, rounds):
    """CLIP's processor as transformers' Pillow path computes it, without its Python overhead."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    begin = time.perf_counter()
    for _ in range(rounds):
        image = square(Image.open(io.BytesIO(data)).convert("RGB")).resize((SIDE, SIDE), Image.BICUBIC)
        pixels = ((np.asarray(image) * (1 / 255)).astype(np.float32) - mean) / std
        np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return (time.perf_counter() - begin) / rounds * 1000


def measure(program, work):
    path = work / "photo.jpg"
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    image.save(path, "JPEG", quality=90)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ratios, rounds = [], 100
    for _ in range(5):
        theirs = peer_speed(path.read_bytes(), rounds)
        own = ours(program, work / "pad", [path] * rounds, work / "dump.safetensors")[1] / rounds
        ratios.append(theirs / own)
        print(f"llava {own:.2f} ms, Pillow + numpy {theirs:.2f} ms a picture: {ratios[-1]:.2f} times as fast", flush=True)
    print(f"median {sorted(ratios)[2]:.2f}")
    return sorted(ratios)[2] < 2.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        text = work / "text.txt"
        text.write_text("\n".join(f"hello world number {i} and some more words" for i in range(300)))
        for aspect in ("square", "pad", "anyres"):
            make_model(args.llava, work / aspect, text, image_aspect_ratio=aspect)
        config = work / "anyres" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "image_grid_pinpoints": GRIDS}))
        return measure(args.llava, work) if args.speed else compare(args.llava, work, args.images, args.seed) > 0


if __name__ == "__main__":
    sys.exit(main())
