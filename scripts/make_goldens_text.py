#!/usr/bin/env python3
"""Makes the files of tests/golden/text that come from Hugging Face's tokenizers.

usage: make_goldens_text.py [FOLDER]     (tokenizers 0.23.3)

Small tokenizers with exactly the settings of well-known ones, trained on a few lines; what the library
makes of many texts; and what it decodes random ids to.
"""
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/text")
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
CORPUS = """What is in this picture? A red cat sits on the table, and it's looking at you.
I'll describe the image: there are 12 people, 345 cars and 6789 trees. We've seen they're DON'T HE'S.
Xin chào, bạn có khỏe không? 你好，世界！请描述这张图片。 こんにちは 안녕하세요 Привет мир नमस्ते दुनिया
for (int i = 0; i < n; ++i) {\n\tstd::cout << v[i] << "\\n";\n}\n\n\n    return x ** 2  # square\r\n
The quick brown fox jumps over the lazy dog. hello hello world world caption caption image image
""".split("\n")
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN2_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def byte_level(pattern, size, specials, normalizer=None, ignore_merges=False, bos=None, plain=()):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pattern:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([special(text) for text in specials])
    tokenizer.add_tokens(list(plain))
    if bos:
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                          special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    return tokenizer


def pieces(legacy, scheme="first", split=False):
    """Llama-2's kind, with the merges of a small training run and a piece for every byte."""
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=["<unk>", "<s>", "</s>"] + bytes_,
                                  limit_alphabet=70, show_progress=False)
    base.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(base.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]],
                                     unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([special(t) for t in ["<unk>", "<s>", "</s>", "<image>"]])
    tokenizer.add_special_tokens([special("<mask>", lstrip=True), special("<trim>", rstrip=True),
                                  special("<word>", single_word=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                             special_tokens=[("<s>", 1)])
    return tokenizer


KINDS = {
    "llama3": byte_level(CL100K % r"\p{N}{1,3}", 620, LLAMA3_SPECIALS, ignore_merges=True, bos="<|begin_of_text|>"),
    "qwen2": byte_level(CL100K % r"\p{N}", 600, QWEN2_SPECIALS, normalizer=normalizers.NFC()),
    "gpt2": byte_level("", 560, ["<|endoftext|>"],
                       plain=[AddedToken(" " * n, normalized=False) for n in range(8, 1, -1)] + ["<|im_end|>"]),
    "pieces_legacy": pieces(legacy=True),
    "pieces_first": pieces(legacy=False),
    "pieces_always": pieces(legacy=False, scheme="always", split=True),
}


def texts():
    random.seed(7)
    out = [row["text"] for row in json.loads((FOLDER / "vectors.json").read_text())["encode"]]
    out += ["It's HE'LL we'Ve x'ſ y'S 'quoted' don''t I'dé", "a1234567b 12 ١٢٣ ⅷ² x1y", "\r\n\r\n a\n\n\n b \n c\t\n",
            "é e\u0301 ệ e\u0323\u0302 e\u0302\u0323 Å A\u030a ﬁ \u1100\u1161\u11a8 \uac00\u11a8 \u0958 \u0344 q\u0307\u0323",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|><|endoftext|>",
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "a <mask> b<mask>c  <mask>", "a <trim>  b<trim>c",
            "a <word> b<word>c <word>. <word>", "  <image>  x", "<image> x<image>", "x  \u3000 \u00a0y\u2028z\u0085w\x1c\x1dq"]
    pools = ["abcdefghij", " ", "  \n\r\t", "0123456789", "'\"!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`", "éèàçñøßſİıǆ",
             "你好世界描述图片", "こんにちはカタカナ", "안녕한글", "Привет", "नमस्ते", "مرحبا", "ไทย", "😀👍🏽👨‍👩‍👧🇻🇳",
             "\u0301\u0323\u0302\u0308\u093c\u3099", "\u00a0\u3000\u2003\u200b\u2028\u0085", "①Ⅷ½²٣৪", "ＡＢ１２", "\u1100\u1161\u11a8",
             "\u1c89\U00010d40\U000105c0\U0001f600"]
    for _ in range(200):
        out.append("".join(random.choice(random.choice(pools)) for _ in range(random.randint(1, 40))))
    return out


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


everything = {"texts": texts(), "kinds": {}}
for name, tokenizer in KINDS.items():
    (FOLDER / name).mkdir(exist_ok=True)
    config = json.loads(tokenizer.to_str())
    write(FOLDER / name / "tokenizer.json", config)
    random.seed(11)
    size = tokenizer.get_vocab_size()
    some_ids = [[random.randrange(3, size) for _ in range(random.randint(1, 12))] for _ in range(80)]
    everything["kinds"][name] = {
        "size": size,
        "ids": [tokenizer.encode(text, add_special_tokens=False).ids for text in everything["texts"]],
        "decode": [[ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False)] for ids in some_ids],
    }
write(FOLDER / "hugging_face.json", everything)
