#!/usr/bin/env python3
"""Gives llava malformed model folders: none may load, crash, hang, or take more memory than it holds + 64 MiB.

    python3 scripts/try_malformed_folders.py build/release/llava [--count 2000] [--seed 0]

A tiny model, split into two shards, is damaged in one place: safetensors headers that lie, overlap, overflow
or nest; shard indexes that lead elsewhere; pickles that call, underflow and bomb; archives that lie; numbers
out of range in each JSON file; broken tokenizers. `llava run -n 0` must then end with exit code 3 (2 where the
model is refused as such, 4 where it cannot fit) and one line on stderr. Memory is the peak resident set above
that of the undamaged model.
"""
import argparse
import collections
import json
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

ALLOWANCE, SECONDS = 64 << 20, 30
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def read_safetensors(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + length]), data[8 + length:]


def write_safetensors(path, header, data, prefix=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((struct.pack("<Q", len(text)) if prefix is None else prefix) + text + data)


def split(folder):
    """model.safetensors as two shards and an index."""
    header, data = read_safetensors(folder / "model.safetensors")
    header.pop("__metadata__", None)
    names, shards = sorted(header), {}
    for file, part in ((A, names[::2]), (B, names[1::2])):
        own, body = {}, b""
        for name in part:
            begin, end = header[name]["data_offsets"]
            own[name] = {**header[name], "data_offsets": [len(body), len(body) + end - begin]}
            body += data[begin:end]
        write_safetensors(folder / file, own, body)
        shards.update({name: file for name in part})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (folder / "model.safetensors").unlink()


# ── Safetensors ──────────────────────────────────────────────────────────────────────────────────


def lengths(folder, pick):
    header, data = read_safetensors(folder / A)
    size = len(json.dumps(header))
    lie = pick.choice([0, 1, 7, size - 1, size + 1, size + len(data) + 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    write_safetensors(folder / A, header, data, struct.pack("<Q", lie))
    if pick.random() < 0.3:
        (folder / A).write_bytes((folder / A).read_bytes()[:pick.randint(0, 8)])


def bombs(folder, pick):
    entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = pick.choice([lambda: "{" + ",".join(entry % i for i in range(pick.choice([70_000, 300_000]))) + "}",
                        lambda: "[" * pick.choice([1000, 15_000_000]), lambda: '{"a":' * 100_000,
                        lambda: '{"__metadata__":{"x":"' + "y" * (17 << 20) + '"}}',
                        lambda: '{"t":{"dtype":"F32","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,4]}}'])()
    write_safetensors(folder / A, text.encode(), b"\0" * 64)


def json_abuse(folder, pick):
    header, data = read_safetensors(folder / A)
    text = json.dumps(header)
    name = pick.choice(list(header))
    broken = pick.choice([
        text + "x", text + text, text[:-1], text[:-1] + ',"a":1e999}', text.replace('"shape"', '"shape": [1], "shape"', 1),
        text[:-1] + "," + json.dumps({name: header[name]})[1:], text[:-1] + ',"\\ud800":{}}', text.replace("{", "[", 1),
        text[:-1] + ',"__metadata__":{"a":1}}', "null", "7", text.replace("[", "[true,", 1)]).encode()
    if pick.random() < 0.2:
        broken = text.encode().replace(b'"dtype"', b'"dt\xffype"', 1)
    write_safetensors(folder / A, broken, data)


def offsets(folder, pick):
    header, data = read_safetensors(folder / A)
    name, other = pick.sample(list(header), 2)
    begin, end = header[name]["data_offsets"]
    kind = pick.randrange(6)
    if kind == 0:
        header[name]["data_offsets"] = header[other]["data_offsets"]
    elif kind == 1:
        header[name]["data_offsets"] = [end, begin]
    elif kind == 2:
        header[name]["data_offsets"] = [begin + 8, end + 8]
    elif kind == 3:
        header[name]["data_offsets"] = [begin, pick.choice([end + 1, end - 1, len(data) + 4, 2**63, -1, 2.5, "4"])]
    elif kind == 4:
        data += pick.choice([b"\0", b"PK\x03\x04" + b"\0" * 60, b"\x7fELF" + b"\0" * 60])
    else:
        data = data[:pick.randrange(len(data))]
    write_safetensors(folder / A, header, data)


def shapes(folder, pick):
    header, data = read_safetensors(folder / A)
    name = pick.choice([n for n in header if header[n]["shape"]])
    shape = header[name]["shape"]
    header[name]["shape"] = pick.choice([
        [2**32, 2**32], [2**63, 2], [0, 2**63], [1] * 1000, [-1], [2.0], [True], shape + [2], [shape[0] + 1, *shape[1:]],
        [2**64], ["1"], None, {}, [[1]], shape + [1] * 8])
    write_safetensors(folder / A, header, data)


def names(folder, pick):
    header, data = read_safetensors(folder / A)
    name = pick.choice(list(header))
    entry = header.pop(name)
    new = pick.choice(["", "x" * 1_000_000, "a\0b", "a\nb", "\x1b[2J", name.upper(), "model." + name, name + " "])
    header[new] = entry
    write_safetensors(folder / A, header, data)


def dtypes(folder, pick):
    header, data = read_safetensors(folder / A)
    name = pick.choice(list(header))
    header[name]["dtype"] = pick.choice(["F31", "f32", "", None, 3, "U4", "F4", "F64", "I8", "BOOL", "C64", "PY", ["F32"]])
    write_safetensors(folder / A, header, data)


# ── Index ────────────────────────────────────────────────────────────────────────────────────────

OUTSIDE = ["../x", "/etc/passwd", "a/../../x", "a\0b", "..\\x", "/dev/zero", "./../" + A, "//" + A, "..", ".", "", "x" * 300, "%2e%2e/x"]


def index(folder, pick):
    content = json.loads((folder / INDEX).read_text())
    weights = content["weight_map"]
    name = pick.choice(list(weights))
    kind = pick.randrange(7)
    if kind <= 1:
        weights[name] = pick.choice(OUTSIDE)
    elif kind == 2:
        weights[name] = pick.choice(["missing.safetensors", B if weights[name] == A else A, "config.json", None, 3, [A]])
    elif kind == 3:
        (folder / B).unlink()
        pick.choice([lambda: None, lambda: os.mkfifo(folder / B), lambda: (folder / B).mkdir(),
                     lambda: (folder / B).symlink_to("/dev/zero"), lambda: (folder / B).symlink_to(B)])()
    elif kind == 4:
        weights.update({f"t{i}": f"{i}.safetensors" for i in range(100_000)})
    elif kind == 5:
        shutil.copy(folder / A, folder / B)
    text = json.dumps(content)
    (folder / INDEX).write_text(text if kind < 6 else pick.choice([text[:-5], "[" * 100_000, "{}", "[]", "", '{"weight_map": 3}']))


# ── Pickles and archives ─────────────────────────────────────────────────────────────────────────


class Call:
    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        return Call.finds[self.name], self.arguments


Call.finds = {"system": os.system, "eval": eval, "exec": exec, "getattr": getattr, "open": open, "popen": subprocess.Popen,
              "loads": pickle.loads, "bytearray": bytearray}


def pickles(folder, pick):
    mark = folder.parent / "called"
    calls = [Call("system", f"touch {mark}"), Call("eval", f"open('{mark}', 'w')"), Call("exec", "1"), Call("getattr", "a", "b"),
             Call("open", str(mark), "w"), Call("popen", ["touch", str(mark)]), Call("loads", b"N."), Call("bytearray", 2**31)]
    code = pick.choice([
        pickle.dumps({"w": pick.choice(calls)}, protocol=pick.choice([0, 1, 2, 4])), b"\x80\x02.", b"\x80\x02t.", b"\x80\x02}q\xff.",
        b"\x80\x02j\xff\xff\xff\x7f.", b"\x80\x02\x8b\xff\xff\xff\x7f", b"\x80\x04\x95" + b"\xff" * 8 + b"N.", b"\x80\x02" + b"(" * 10**6,
        b"\x80\x02)" + b"\x85" * 10**6 + b".", b"\x80\x02X\xff\xff\xff\x7fa.", b"\x80\x02U\xffa.", b"\x80\x02" + b"]" * 10**6, b"",
        b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.", b"\x80\x02K\x01Q.", os.urandom(50)])
    for file in (A, B, INDEX):
        (folder / file).unlink()
    target = folder / "pytorch_model.bin"
    kind = pick.randrange(5)
    if kind == 0:
        target.write_bytes(code)
        return
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if kind == 1 else zipfile.ZIP_STORED) as archive:
        archive.writestr("m/data.pkl", code if kind != 1 else b"\x80\x02}." + b"\0" * 10**7)
        archive.writestr("m/version" if kind != 2 else "../../x", "3\n")
        archive.writestr("m/data/0", b"\0" * 64)
        if kind == 3:
            archive.writestr("m/data/1", b"")
            archive.filelist[-1].filename = "m/data/0"
    if kind == 4:
        data = bytearray(target.read_bytes())
        for _ in range(pick.randint(1, 4)):
            data[-pick.randint(1, 120)] ^= 0xff
        target.write_bytes(data)


# ── JSON files ───────────────────────────────────────────────────────────────────────────────────

NUMBERS = [-1, 10**9, 2**31, 2**63, 1.5, "7", None, [], {}, float("nan")]
CONFIG = {
    ("text_config", "hidden_size"): NUMBERS + [0, 63], ("text_config", "num_hidden_layers"): NUMBERS + [0, 10**6],
    ("text_config", "vocab_size"): NUMBERS + [0], ("text_config", "num_attention_heads"): NUMBERS + [0, 3],
    ("text_config", "num_key_value_heads"): [-1, 0, 3, 10**9, 1.5], ("text_config", "rope_theta"): [float("nan"), -1.0, 0, "x"],
    ("text_config", "rms_norm_eps"): [float("nan"), -1.0, "x"], ("text_config", "intermediate_size"): NUMBERS + [0],
    ("vision_config", "patch_size"): NUMBERS + [0], ("vision_config", "image_size"): NUMBERS + [0, 10**6],
    ("vision_config", "hidden_size"): NUMBERS + [0], ("vision_config", "num_hidden_layers"): NUMBERS + [10**6],
    ("vision_feature_layer",): [-999, 999, "x", [], 1.5], ("vision_feature_select_strategy",): ["x", 3],
    ("model_type",): ["x", 3, ""], ("text_config", "model_type"): ["gpt2", 3], ("projector_hidden_act",): ["x", 7],
    ("text_config", "rope_scaling"): [{"type": "x", "factor": 2}, {"type": "linear", "factor": -1}, {"type": "linear"}, 7],
}
PREPROCESSOR = {"image_std": [[0, 0, 0], [1, 1], "x", [float("nan")] * 3], "image_mean": [[float("nan")] * 3, [1], 7],
                "size": [-1, 0, 10**6, "x", {"shortest_edge": -1}, {}], "crop_size": [10**6, -1, 0, "x", {"height": 0, "width": 0}]}
TEXTS = ["", "{", "[]", "null", "[" * 100_000, '{"a": 1}{', '{"a": \x01}', "\ufeff\ufeff{}", '{"a":' * 50_000, "7"]


def change(path, keys, value):
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def config(folder, pick):
    if pick.random() < 0.2:
        (folder / "config.json").write_text(pick.choice(TEXTS))
        return
    keys = pick.choice(list(CONFIG))
    change(folder / "config.json", keys, pick.choice(CONFIG[keys]))


def preprocessor(folder, pick):
    if pick.random() < 0.2:
        (folder / "preprocessor_config.json").write_text(pick.choice(TEXTS))
        return
    key = pick.choice(list(PREPROCESSOR))
    change(folder / "preprocessor_config.json", (key,), pick.choice(PREPROCESSOR[key]))


def generation(folder, pick):
    if pick.random() < 0.3:
        (folder / "generation_config.json").write_text(pick.choice(TEXTS))
        return
    change(folder / "generation_config.json", ("eos_token_id",), pick.choice([10**9, -1, "x", [1, 10**9], 1.5, {}]))


def adapter(folder, pick):
    good = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": str(folder)}
    bad = {"r": [10**6, 0, -1, 1.5, "x"], "lora_alpha": [float("nan"), "x"], "target_modules": ["(a+)+$", [3], 7, {}],
           "peft_type": ["IA3", 3]}
    key = pick.choice(list(bad))
    (folder / "adapter_config.json").write_text(json.dumps({**good, key: pick.choice(bad[key])}))


def tokenizer(folder, pick):
    path = folder / "tokenizer.model"
    data = bytearray(path.read_bytes())
    kind = pick.randrange(5)
    if kind == 0:
        data = data[:pick.randrange(len(data) - 1)]
    elif kind == 1:
        data += bytes([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])
    elif kind == 2:
        data = data.replace(b"\x0a\x01a", b"\x0a\x01b", 1)  # one piece twice
    elif kind == 3:
        data = bytearray(pick.choice([b"", b"\0" * 100, b"{}", os.urandom(100)]))
    else:
        data += b"\x0a\x02\x0a\x00"  # a piece without letters
    path.write_bytes(data)


KINDS = [lengths, bombs, json_abuse, offsets, shapes, names, dtypes, index, pickles, config, preprocessor, generation, adapter, tokenizer]


def run(program, folder):
    """Exit code, peak resident bytes and stderr of a load; one that hangs is killed and has exit code -9."""
    words = ["timeout", "-s", "KILL", str(SECONDS), program, "run", "-m", folder, "-p", "hi", "-n", "0", "--device", "cpu", "--quiet"]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                                 env={**os.environ, "OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        return child.returncode, usage.ru_maxrss * 1024, errors.read().decode(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pick = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        good = root / "good"
        subprocess.run([args.llava, "init", "--shape", "tiny", "--output_dir", good, "--quiet"], check=True)
        split(good)
        code, base, errors = run(args.llava, good)
        assert code == 0, errors
        bad, codes = 0, collections.Counter()
        for number in range(args.count):
            kind = KINDS[number % len(KINDS)]
            folder = root / "folder"
            shutil.copytree(good, folder)
            kind(folder, pick)
            code, memory, errors = run(args.llava, folder)
            held = sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
            faults = []
            if code not in (2, 3, 4):
                faults.append(f"exit {code}")
            if errors.count("\n") != 1 or not errors.startswith("llava: "):
                faults.append(f"stderr {errors[:300]!r}")
            if memory > base + held + ALLOWANCE:
                faults.append(f"{(memory - base) >> 20} MiB above the good model, for {held >> 20} MiB")
            if (root / "called").exists():
                faults.append("the pickle was executed")
            codes[code] += 1
            bad += bool(faults)
            if faults:
                kept = pathlib.Path(tempfile.mkdtemp(prefix=f"malformed-{kind.__name__}-"))
                shutil.copytree(folder, kept / "folder", symlinks=True, copy_function=lambda a, b: os.path.isfile(a) and shutil.copy(a, b))
                print(f"{number} {kind.__name__}: {'; '.join(faults)} (kept in {kept})", flush=True)
            shutil.rmtree(folder)
    print(f"{args.count - bad} of {args.count} refused; exit codes {dict(codes)}")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
