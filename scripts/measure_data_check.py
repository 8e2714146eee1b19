#!/usr/bin/env python3
"""Times `llava data check` on a large training set, and its tokenizing beside the reference's tokenizer.

    python scripts/measure_data_check.py build/release/llava [--records 1000000] [--with_model]

Writes a LLaVA JSON of about 1 KB a record to a temporary folder (1 GB for a million), every second record
with the same small picture, and prints megabytes a second of CPU time and the peak resident set, on one
core. --with_model, which needs sentencepiece and transformers, also counts tokens: tokens a second of CPU
time, and those of sentencepiece (what the reference's LlamaTokenizer calls) and of transformers' own
LlamaTokenizer on the same texts.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
WORDS = ("the a of red blue green small large round square picture shows left right above below near there is are one two "
         "what where how many which does can see you it this that and or not person dog street table tree water sky house "
         "café naïve 3 12 2024, yes. no? because however therefore standing between umbrella photograph").split()


def turns(pick):
    made, length = [], 0
    while length < 700:
        question, answer = (" ".join(pick.choices(WORDS, k=pick.randint(8, 40))) for _ in range(2))
        made += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        length += len(question) + len(answer)
    return made


def write_set(path, records):
    pick = random.Random(0)
    blocks = [turns(pick) for _ in range(2000)]
    with path.open("w") as file:
        file.write("[")
        for i in range(records):
            record = {"id": f"sample-{i}", "conversations": blocks[i * 7919 % len(blocks)]}
            if i % 2:
                first = {**record["conversations"][0], "value": "<image>\n" + record["conversations"][0]["value"]}
                record = {"id": record["id"], "image": "a.ppm", "conversations": [first, *record["conversations"][1:]]}
            file.write((",\n" if i else "") + json.dumps(record, ensure_ascii=False))
        file.write("]\n")
    (path.parent / "a.ppm").write_bytes(b"P6 32 32 255\n" + bytes(32 * 32 * 3))


def run(*words):
    """stdout, CPU seconds and peak resident bytes."""
    child = subprocess.Popen([*map(str, words), "--threads", "1", "--quiet"], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, text[:500]
    return text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def timed(encode, texts):
    begin = time.process_time()
    count = sum(len(encode(text)) for text in texts)
    return count / (time.process_time() - begin)


def compare_tokenizers(program, work, path):
    import sentencepiece
    import transformers

    subprocess.run([program, "init", "--shape", "tiny", "--output_dir", work / "model", "--tokenizer",
                    ROOT / "tests/golden/text", "--max_position_embeddings", "100000", "--quiet"], check=True)
    _, without, _ = run(program, "data", "stats", "--data_path", path, "--image_folder", work)
    text, seconds, _ = run(program, "data", "stats", "--data_path", path, "--image_folder", work, "-m", work / "model",
                           "--conv_mode", "v1", "--json")
    stats = json.loads(text)
    tokens = stats["tokens"] - stats["image_tokens"]
    rate = tokens / seconds
    print(f"llava: {tokens} tokens, {rate / 1e6:.2f} M tokens/s of the whole verb, "
          f"{tokens / max(seconds - without, 1e-9) / 1e6:.2f} M tokens/s without reading the file")
    texts = [" ".join(turn["value"] for turn in record["conversations"]) for record in json.loads(path.read_text())[:20000]]
    model = str(ROOT / "tests/golden/text/tokenizer.model")
    peers = {"sentencepiece": sentencepiece.SentencePieceProcessor(model_file=model).encode,
             "transformers": lambda text, own=transformers.LlamaTokenizer.from_pretrained(ROOT / "tests/golden/text"): own(text).input_ids}
    for name, encode in peers.items():
        own = timed(encode, texts)
        print(f"{name}: {own / 1e6:.2f} M tokens/s; llava is {rate / own:.1f} times as fast")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--with_model", action="store_true")
    args = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp())
    try:
        path = work / "set.json"
        write_set(path, args.records)
        size = path.stat().st_size
        if args.with_model:
            compare_tokenizers(args.llava, work, path)
            return
        _, seconds, memory = run(args.llava, "data", "check", "--data_path", path, "--image_folder", work)
        print(f"{size / 1e9:.2f} GB, {args.records} records: {size / seconds / 1e6:.0f} MB/s of CPU time, peak {memory / 1e6:.0f} MB")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
