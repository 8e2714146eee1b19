#!/usr/bin/env python3
"""Writes src/text/unicode_tables.inc: the character classes and the composition data of NFC.

    pip install tokenizers==0.23.3 && python3 scripts/make_unicode_tables.py > src/text/unicode_tables.inc

Letters, numbers, decompositions and which characters combine are asked of the tokenizers library, which is
what ours must equal (its classes are Unicode 16, its NFC is older); the values of the combining classes
come from Python's unicodedata.
"""
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern):
    """Every code whose character the pattern matches."""
    removed = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for begin in range(0, len(CODES), 4096):
        block = CODES[begin:begin + 4096]
        kept = {ord(c) for piece, _ in removed.pre_tokenize_str("".join(map(chr, block))) for c in piece}
        found |= set(block) - kept
    return found


def ranges(codes, key=lambda code: True):
    """[begin, end, key) runs of neighbours with one key."""
    runs = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code and runs[-1][2] == key(code):
            runs[-1][1] = code + 1
        else:
            runs.append([code, code + 1, key(code)])
    return runs


def write(comment, declaration, rows):
    print(f"\n// {comment}\nconstexpr {declaration}[] = {{")
    line = "   "
    for row in rows:
        item = " {" + ", ".join(f"{value:#x}" for value in row) + "},"
        if len(line + item) > 100:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")


nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
decompositions = []
for code in CODES:
    full = nfd(chr(code))
    if full == chr(code) or 0xAC00 <= code < 0xD7A4:  # Hangul is computed
        continue
    first = full if len(full) == 1 else nfc(full[:-1])
    composes = nfc(chr(code)) == chr(code)
    if len(full) == 1:
        decompositions.append((code, ord(full), 0, 0))
    elif len(first) == 1 and nfd(first) == full[:-1]:
        decompositions.append((code, ord(first), ord(full[-1]), int(composes)))
    else:  # the part before the last does not compose: only the two-character forms are like this
        first = {nfd(chr(c)): c for c in CODES if nfd(chr(c)) == full[:-1]}[full[:-1]]
        decompositions.append((code, first, ord(full[-1]), int(composes)))

print("// Made by scripts/make_unicode_tables.py; do not edit.")
write("\\p{L}: [begin, end).", "CodeRange kLetters", [r[:2] for r in ranges(members(r"\p{L}"))])
write("\\p{N}: [begin, end).", "CodeRange kNumbers", [r[:2] for r in ranges(members(r"\p{N}"))])
YPOGEGRAMMENI = "\u0345"  # the last of all in the order of combining classes
combining = {c for c in CODES if unicodedata.combining(chr(c))
             and (chr(c) == YPOGEGRAMMENI or nfd("a" + YPOGEGRAMMENI + chr(c))[-1] == YPOGEGRAMMENI)}
write("Canonical combining classes other than 0: [begin, end), class.", "CombiningRange kCombining",
      ranges(combining, lambda code: unicodedata.combining(chr(code))))
write("Canonical decompositions: code, its one or two parts, whether the parts compose again.",
      "Decomposition kDecompositions", decompositions)
