#!/usr/bin/env python3
"""Reports files, functions and lines past the house's figures.  Never fails a build: past a figure,
look for a missing noun, not a place to cut."""
import pathlib
import re

FIGURES = {".cpp": 400, ".cu": 400, ".h": 250}
TRAINER = ("src/train/trainer.cpp", 300)
SUBCOMMAND = 150
FUNCTION = 60
WIDTH = 100


def long_functions(lines):
    """Bodies that open at column 0's end brace and close with one at column 0."""
    start = None
    for number, line in enumerate(lines, 1):
        if start is None and re.match(r"[A-Za-z].*\{$", line) and not re.match(r"(namespace|struct|class|enum|extern|constexpr|const) ?", line):
            start = number
        elif start is not None and line.startswith("}"):
            if number - start > FUNCTION:
                yield start, number - start
            start = None


def main():
    total = 0
    for root in ("include", "src", "tests"):
        for path in sorted(pathlib.Path(root).rglob("*.*")):
            if path.suffix not in FIGURES:
                continue
            lines = path.read_text().splitlines()
            total += len(lines)
            limit = TRAINER[1] if str(path) == TRAINER[0] else FIGURES[path.suffix]
            if str(path).startswith("src/cli/"):
                limit = SUBCOMMAND
            if len(lines) > limit and root != "tests":
                print(f"{path}: {len(lines)} lines (look at {limit})")
            for start, length in long_functions(lines) if root == "src" else ():
                print(f"{path}:{start}: a function of {length} lines (look at {FUNCTION})")
            for number, line in enumerate(lines, 1):
                if len(line) > WIDTH:
                    print(f"{path}:{number}: {len(line)} columns (look at {WIDTH})")
    print(f"sizes: {total} lines in all")


if __name__ == "__main__":
    main()
