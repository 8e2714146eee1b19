#!/usr/bin/env python3
"""Asks transformers what `llava run --input` was asked, with the same model folder, and compares the answers.

    python scripts/compare_answers.py FOLDER [--count 100]

FOLDER is the demo's: stage2/model, world/questions.jsonl, world/images and answers.jsonl are there. Needs torch,
transformers 5.24, Pillow and sentencepiece. Greedy, in float32, template vicuna_v1, the picture before the question.
"""
import argparse
import json
import pathlib
import sys

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions.")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(args.folder / "stage2/model", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(args.folder / "stage2/model", backend="pil")
    answers = {line["question_id"]: line["text"] for line in lines(args.folder / "answers.jsonl")}
    differ = 0
    for question in lines(args.folder / "world/questions.jsonl")[:args.count]:
        image = Image.open(args.folder / "world/images" / question["image"]).convert("RGB")
        inputs = processor(images=image, text=f"{SYSTEM} USER: <image>\n{question['text']} ASSISTANT:", return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:]
        text = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        if text != answers[question["question_id"]]:
            differ += 1
            print(f"{question['question_id']}: transformers \"{text}\", llava \"{answers[question['question_id']]}\"")
    print(f"{args.count - differ} of {args.count} answers equal")
    return differ > 0


if __name__ == "__main__":
    sys.exit(main())
