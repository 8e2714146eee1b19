#!/usr/bin/env python3
"""Fails when a file includes a folder it may not, another folder's private header, or torch where
none may be.  The table is the architecture; CMakeLists.txt links the folders by the same one."""
import pathlib
import re
import sys

ALLOWED = {  # in order: a folder may only be given folders that stand before it
    "base": "",
    "text": "base",
    "media": "base",
    "weights": "base",
    "nn": "base",
    "dist": "base",
    "input": "base text media",
    "model": "base media weights nn input",
    "data": "base text media input",
    "generate": "base text media nn input model",
    "train": "base weights nn dist input model data",
    "openai": "base text media generate",
    "eval": "base text media dist input model generate openai",
    "datagen": "base openai",
}
ALLOWED["cli"] = " ".join(ALLOWED)
TORCH_FREE = ("base/", "text/", "media/", "input/example", "input/encoder", "data/records", "data/report",
              "data/sampler", "cli/args", "cli/data")
INCLUDE = re.compile(r'\s*#\s*include\s+(["<])([^">]+)[">]')


def faults_of(path, folder, name):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        target = found[2]
        torch = target == "llava/torch.h" or target.split("/")[0] in ("torch", "ATen", "c10")
        if torch and name.startswith(TORCH_FREE):
            yield f"{path}:{number}: {name} must not include torch ({target})"
        public = target.startswith("llava/")
        parts = target.removeprefix("llava/").split("/")
        other = parts[0] if len(parts) > 1 else ""
        if other in ALLOWED and other != folder and not (public and other in ALLOWED[folder].split()):
            yield f"{path}:{number}: {folder} must not include {target}"


def main():
    order = list(ALLOWED)
    faults = [f"ALLOWED: {folder} stands before {other}" for folder, may in ALLOWED.items()
              for other in may.split() if order.index(other) >= order.index(folder)]
    for root in ("include/llava", "src"):
        for path in sorted(pathlib.Path(root).rglob("*.*")):
            name = str(path.relative_to(root))
            folder = name.split("/")[0]
            if folder in ALLOWED and path.suffix in (".h", ".cpp", ".cu"):
                faults += faults_of(path, folder, name)
            elif path.suffix in (".h", ".cpp", ".cu") and name not in ("llava.h", "torch.h"):
                faults.append(f"{path}: belongs to no folder of the table")
    print("\n".join(faults) or "layers: ok")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
