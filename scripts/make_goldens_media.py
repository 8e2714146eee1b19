#!/usr/bin/env python3
"""Makes tests/golden/media: small pictures of all kinds, and in images.txt what Pillow 10.3.0 decodes them to.

    make_goldens_media.py tests/golden/media

Each line of images.txt: file, width, height, CRC-32 of convert("RGB"), and the same three after
ImageOps.exif_transpose.
"""
import base64
import io
import random
import struct
import sys
import zlib

import numpy
import PIL
from PIL import Image, ImageOps

assert PIL.__version__ == "10.3.0", PIL.__version__
folder = sys.argv[1]
random.seed(1)
numpy.random.seed(1)
files = {}


def noise(width, height, channels):
    return numpy.random.randint(0, 256, (height, width, channels), dtype=numpy.uint8).squeeze()


def smooth(width, height):
    y, x = numpy.mgrid[0:height, 0:width]
    return numpy.stack([x * 5 + y * 3, x * 2 + y * 7, 255 - x * 4 + y], -1).clip(0, 255).astype(numpy.uint8)


def save(name, pixels, kind, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    files[name] = buffer.getvalue()


def bits(count):
    return bytes(random.randrange(256) for _ in range(count))


# ── JPEG ─────────────────────────────────────────────────────────────────────────────────────────
files["reference.jpg"] = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAoHBwgHBgoICAgLCgoLDhgQDg0NDh0VFhEYIx8lJCIfIiEmKzcvJik0KSEiMEExNDk7Pj4+"
    "JS5ESUM8SDc9Pjv/2wBDAQoLCw4NDhwQEBw7KCIoOzs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7"
    "Ozv/wAARCAANABMDASIAAhEBAxEB/8QAFwABAQEBAAAAAAAAAAAAAAAAAAUDBv/EACwQAAAEBAMFCQAAAAAAAAAAAAECAxEABBITBTFR"
    "BgcVIpEUISVBYYKhpOL/xAAWAQEBAQAAAAAAAAAAAAAAAAADAgT/xAAlEQACAAUEAAcAAAAAAAAAAAABEQACAwQhBRIxYTRBUXGSotH/"
    "2gAMAwEAAhEDEQA/AIElgHA25L972s3XWLkrgHCCiQecp2ERanLrrGmyuIrTV7siSCFNNV0oqPmzMJW89Yq7PYovNnWLKpIIAnS90gqO"
    "75MJW+YK6nqW1GY1BgITB+vAJGV54bSKBMVpl1cSk7sbU+nx7vp9xzgS6jA0uUA9e+ECbxEKQ8E+1+IQxq62S9h+Q/Y1C+vl4r6CP//Z")
for sampling, name in ((0, "444"), (1, "422"), (2, "420")):
    save(f"{name}.jpg", smooth(37, 26), "JPEG", subsampling=sampling, quality=85)
    save(f"{name}_progressive.jpg", smooth(37, 26), "JPEG", subsampling=sampling, quality=60, progressive=True)
save("tiny_420.jpg", smooth(3, 2), "JPEG", subsampling=2)
save("one_pixel.jpg", smooth(1, 1), "JPEG")
save("restart.jpg", noise(20, 17, 3), "JPEG", restart_marker_blocks=2)
save("gray.jpg", noise(17, 9, 1), "JPEG")
save("cmyk.jpg", noise(12, 9, 4), "JPEG", "CMYK")
save("cmyk_progressive.jpg", noise(12, 9, 4), "JPEG", "CMYK", progressive=True, subsampling=2)
adobe = files["cmyk.jpg"].index(b"Adobe") + 11  # its transform: 0 is CMYK, 2 YCCK
files["ycck.jpg"] = files["cmyk.jpg"][:adobe] + b"\2" + files["cmyk.jpg"][adobe + 1:]
save("rgb_stored.jpg", noise(9, 8, 3), "JPEG", keep_rgb=True)
save("quality_100.jpg", noise(33, 17, 3), "JPEG", quality=100, optimize=True)
for orientation in range(1, 9):
    exif = Image.Exif()
    exif.endian = "<>"[orientation % 2]
    exif[0x112] = orientation
    save(f"exif_{orientation}.jpg", smooth(7, 5), "JPEG", exif=exif.tobytes())
    if orientation == 6:
        save("exif_6.png", smooth(7, 5), "PNG", exif=exif.tobytes())
        save("exif_6.webp", smooth(7, 5), "WEBP", exif=exif.tobytes())


# ── PNG: every colour type and depth, plain and interlaced ───────────────────────────────────────
def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, kind, depth, interlaced=False, extra=b"", raw=None):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    if raw is None:
        raw = b""
        for left, top, step_x, step_y in passes:
            columns, rows = -((left - width) // step_x), -((top - height) // step_y)
            for _ in range(rows if columns > 0 else 0):
                raw += bytes([random.randrange(5)]) + bits((columns * channels * depth + 7) // 8)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
            + extra + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


for kind, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
    for depth in depths:
        palette = chunk(b"PLTE", bits(3 * min(1 << depth, 200))) if kind == 3 else b""
        for interlaced in (False, True):
            files[f"type{kind}_{depth}bit{'_interlaced' * interlaced}.png"] = png(13, 11, kind, depth, interlaced, palette)
files["gray16_edges.png"] = png(6, 1, 0, 16, raw=b"\0" + struct.pack(">6H", 0, 1, 200, 255, 256, 65535))
files["rgb16_edges.png"] = png(1, 1, 2, 16, raw=b"\0" + struct.pack(">3H", 0x00FF, 0x0100, 0x80FF))
files["palette_transparent.png"] = png(9, 7, 3, 4, False, chunk(b"PLTE", bits(30)) + chunk(b"tRNS", bits(10)))
files["rgb_transparent.png"] = png(9, 7, 2, 8, False, chunk(b"tRNS", bits(6)))
files["gamma.png"] = png(9, 7, 2, 8, False, chunk(b"gAMA", struct.pack(">I", 100000)))
files["hidden_colour.png"] = png(2, 1, 6, 8, raw=b"\0" + bytes([200, 100, 50, 0, 1, 2, 3, 255]))
files["tower.png"] = png(1, 60000, 0, 1, raw=bytes(120000))

# ── WebP ─────────────────────────────────────────────────────────────────────────────────────────
save("lossy.webp", smooth(31, 22), "WEBP", quality=80)
save("lossless.webp", noise(11, 9, 3), "WEBP", lossless=True)
save("alpha.webp", noise(11, 9, 4), "WEBP", quality=70)
save("alpha_lossless.webp", noise(11, 9, 4), "WEBP", lossless=True, exact=True)
save("animated.webp", Image.fromarray(noise(11, 9, 4)), "WEBP", lossless=True, save_all=True,
     append_images=[Image.fromarray(noise(11, 9, 4))])

# ── GIF ──────────────────────────────────────────────────────────────────────────────────────────
for colours in (2, 5, 256):
    save(f"colours{colours}.gif", Image.fromarray(noise(19, 14, 3)).quantize(colours), "GIF", interlace=0)
save("interlaced.gif", Image.fromarray(smooth(31, 23)).quantize(40), "GIF", interlace=1)
save("transparent.gif", Image.fromarray(noise(9, 8, 3)).quantize(7), "GIF", transparency=1)
save("gray.gif", noise(9, 8, 1), "GIF")
save("animated.gif", Image.fromarray(noise(9, 8, 3)), "GIF", save_all=True, append_images=[Image.fromarray(noise(9, 8, 3))])
save("long_words.gif", Image.fromarray(numpy.full((300, 300), 3, numpy.uint8)), "GIF")
save("full_table.gif", Image.fromarray(noise(90, 90, 1)), "GIF")


def gif(width, height, left, top, columns, rows, shared, own, transparent):
    data = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x81 if shared else 0, 0, 0) + (shared or b"")
    if transparent is not None:
        data += b"!\xf9\x04" + bytes([1, 0, 0, transparent]) + b"\0"
    data += b"," + struct.pack("<HHHHB", left, top, columns, rows, 0x81 if own else 0) + (own or b"")
    codes, count, text = 0, 0, b""
    for i in range(columns * rows):  # a clear code before each pair: all codes stay 3 bits wide
        for code in ([4] if i % 2 == 0 else []) + [random.randrange(4)] + ([5] if i == columns * rows - 1 else []):
            codes |= code << count
            count += 3
    text = codes.to_bytes((count + 7) // 8, "little")
    return data + b"\2" + bytes([len(text)]) + text + b"\0;"


shared, own, ramp = bits(12), bits(12), bytes(i // 3 for i in range(12))
files["frame_inside.gif"] = gif(8, 6, 2, 1, 4, 3, shared, None, None)
files["frame_inside_transparent.gif"] = gif(8, 6, 2, 1, 4, 3, shared, own, 2)
files["frame_outside.gif"] = gif(4, 4, 2, 2, 6, 6, None, own, None)
files["no_palette.gif"] = gif(8, 6, 2, 1, 4, 3, None, None, 200)
files["ramp_over_palette.gif"] = gif(8, 6, 0, 0, 8, 6, shared, ramp, None)

# ── BMP ──────────────────────────────────────────────────────────────────────────────────────────
save("rgb.bmp", noise(9, 7, 3), "BMP")
save("rgba.bmp", noise(9, 7, 4), "BMP")
save("palette.bmp", Image.fromarray(noise(9, 7, 3)).quantize(100), "BMP")
save("gray.bmp", noise(9, 7, 1), "BMP")
save("bits.bmp", Image.fromarray(noise(19, 7, 1)).convert("1"), "BMP")


def bmp(width, height, depth, compression=0, length=40, masks=(), palette=b"", top_down=False, data=None):
    if length == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        header = struct.pack("<IiiHHIIiiII", 40, width, -height if top_down else height, 1, depth, compression, 0, 0, 0, 0, 0)
    fields = struct.pack(f"<{len(masks)}I", *masks)
    data = data or bits((width * depth + 31) // 32 * 4 * height)
    return (b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header) + len(fields) + len(palette)) + header + fields + palette
            + data)


files["os2.bmp"] = bmp(9, 5, 4, length=12, palette=bits(48))
files["four_bits.bmp"] = bmp(9, 5, 4, palette=bits(64), top_down=True)
files["rgb555.bmp"] = bmp(9, 5, 16)
files["rgb565.bmp"] = bmp(9, 5, 16, 3, masks=(0xF800, 0x7E0, 0x1F))
files["xbgr.bmp"] = bmp(9, 5, 32, 3, masks=(0xFF000000, 0xFF0000, 0xFF00))
files["runs8.bmp"] = bmp(7, 3, 8, 1, palette=bits(1024), data=bytes(
    [7, 9, 0, 0, 2, 1, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0, 3, 200, 0, 0, 0, 1]))
files["runs4.bmp"] = bmp(7, 3, 4, 2, palette=bits(64), data=bytes(
    [7, 0x9A, 0, 0, 3, 0x12, 0, 4, 0x34, 0x56, 0, 0, 3, 0xBC, 0, 0, 0, 1]))

# ── TGA ──────────────────────────────────────────────────────────────────────────────────────────
for mode, pixels in (("RGB", smooth(21, 6)), ("RGBA", noise(9, 6, 4)), ("L", noise(9, 6, 1)), ("LA", noise(9, 6, 2))):
    save(f"{mode.lower()}.tga", pixels, "TGA", mode, orientation=1)
    save(f"{mode.lower()}_runs.tga", pixels, "TGA", mode, compression="tga_rle", orientation=-1)
save("palette.tga", Image.fromarray(noise(9, 6, 3)).quantize(17), "TGA")
files["rgb555_mirrored.tga"] = struct.pack("<BBBHHBHHHHBB", 3, 0, 2, 0, 0, 0, 0, 0, 7, 5, 16, 0x10) + bits(3 + 70)
files["shifted_palette.tga"] = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 100, 100, 16, 0, 0, 7, 5, 8, 0x20) + bits(200 + 35)

# ── PPM ──────────────────────────────────────────────────────────────────────────────────────────
for kind in "123456":
    for white in (1,) if kind in "14" else (1, 100, 255, 1000, 65535):
        values = [random.randint(0, white) for _ in range(15 * (3 if kind in "36" else 1))]
        header = f"P{kind}\n# a comment\n5 3\n" + (f"{white}\n" if kind not in "14" else "")
        if kind == "4":
            body = bits(3)
        elif kind in "123":
            body = (" ".join(map(str, values)) + "\n").encode()
        else:
            body = b"".join(struct.pack(">H", value) if white > 255 else bytes([value]) for value in values)
        files[f"p{kind}_{white}.ppm"] = header.encode() + body

# ── What Pillow makes of them ────────────────────────────────────────────────────────────────────
lines = []
for name, data in files.items():
    with open(f"{folder}/{name}", "wb") as file:
        file.write(data)
    image = Image.open(io.BytesIO(data))
    parts = [name]
    for seen in (image.convert("RGB"), ImageOps.exif_transpose(image).convert("RGB")):
        parts += [str(seen.width), str(seen.height), f"{zlib.crc32(seen.tobytes()):08x}"]
    lines.append(" ".join(parts))
with open(f"{folder}/images.txt", "w") as file:
    file.write("\n".join(lines) + "\n")
print(len(files), "files,", sum(map(len, files.values())), "bytes")
