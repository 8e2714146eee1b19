#!/usr/bin/env python3
"""Records ids and labels that haotian-liu/LLaVA makes of conversations, for tests/input.

    git clone https://github.com/haotian-liu/LLaVA && git -C LLaVA checkout c121f0432da27facab705978f83c4ada465e46fd
    pip install torch transformers==4.37.2 tokenizers==0.15.1 sentencepiece==0.1.99 protobuf 'numpy<2' pillow
    PYTHONPATH=LLaVA python3 scripts/make_goldens_input.py tests/golden/text/tokenizer.model tests/golden/input

preprocess_multimodal and preprocess of llava/train/train.py run as they are; only samples that they
do not mask for a length mismatch are kept, and the script fails if one was meant to be kept."""
import contextlib, copy, io, json, pathlib, shutil, sys, tempfile, types

import transformers
from llava import conversation as conversation_lib
from llava.train import train

model, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


def turns(*words):
    return [{"from": ("human", "gpt")[i % 2], "value": word} for i, word in enumerate(words)]


CASES = {
    "one turn": turns("<image>\nWhat is this?", "A cat."),
    "two turns": turns("<image>\nWhat is this?", "A cat.", "What color?", "Black."),
    "mark behind": turns("Describe the picture.\n<image>", "Two dogs run on grass."),
    "mark within": turns("  What does <image> show?  ", "A red bus.", "And behind it?", "A church, 12 trees."),
    "mark twice": turns("<image>\nIs <image> new?", "No."),
    "mark alone": turns("<image>", "Nothing much."),
    "number first": turns("<image>\nHow many?", "3"),
    "newline first": turns("<image>\nList them.", "\n1. apple\n2. pear\n"),
    "spaces": turns("<image>\nWhy?  ", "Because  of   rain. ", "Really? ", " Yes."),
    "languages": turns("<image>\n这是什么？", "这是一只猫。", "Ça va? 😀", "Très bien 👍🏽 naïve café"),
    "code": turns("<image>\nWrite code.", "def f(x):\n\treturn x**2 # done\n\n\nprint(f(3))"),
    "five turns": turns("<image>\na?", "b", "c?", "d", "e?", "f", "g?", "h", "i?", "j"),
}
TEXT_CASES = {
    "text": turns("Hello, who are you?", "I am an assistant.", "Thanks!", "You are welcome."),
    "text with mark": turns("What does <image> mean in HTML?", "It is not <image> but <img>."),
}
VERSIONS = ["v1", "llava_llama_2", "mistral_instruct", "v1_mmtag"]


def tokenizer_of(folder, legacy):
    shutil.copy(model, folder / "tokenizer.model")
    return transformers.LlamaTokenizer(
        str(folder / "tokenizer.model"), legacy=legacy, model_max_length=2048, padding_side="right")


def record(version, name, conversation, has_image, legacy, tokenizer):
    conversation_lib.default_conversation = conversation_lib.conv_templates[version]
    arguments = types.SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)
    sources = [copy.deepcopy(conversation)]
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise):
        if has_image:
            sources = train.preprocess_multimodal(sources, arguments)
        result = train.preprocess(sources, tokenizer, has_image=has_image)
    if "mismatch" in noise.getvalue():
        print("left out:", version, name, "legacy" if legacy else "new", noise.getvalue().strip())
        return None
    return {"template": version, "legacy": legacy, "name": name, "image": has_image,
            "turns": [turn["value"] for turn in conversation],
            "ids": result["input_ids"][0].tolist(), "labels": result["labels"][0].tolist()}


vectors = []
for legacy in (True, False):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(pathlib.Path(folder), legacy)
        tokenizer.pad_token = tokenizer.unk_token
        for version in VERSIONS:
            for cases, has_image in ((CASES, True), (TEXT_CASES, False)):
                for name, conversation in cases.items():
                    vectors.append(record(version, name, conversation, has_image, legacy, tokenizer))
        for name, conversation in CASES.items():
            vectors.append(record("plain", name, conversation[:2], True, legacy, tokenizer))
vectors = [vector for vector in vectors if vector]
lines = ",\n".join(json.dumps(vector, ensure_ascii=False, separators=(",", ":")) for vector in vectors)
(out / "labels.json").write_text("[\n" + lines + "\n]\n")
print(len(vectors), "vectors")
