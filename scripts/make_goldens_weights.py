#!/usr/bin/env python3
"""Makes tests/golden/weights: small files of the official safetensors and torch.save.

usage: make_goldens_weights.py [FOLDER]     (torch 2.11.0, safetensors 0.8.0)
"""
import json
import pathlib
import sys

import safetensors.torch
import torch

DTYPES = [torch.uint64, torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32, torch.int32,
          torch.bfloat16, torch.float16, torch.uint16, torch.int16, torch.float8_e5m2fnuz, torch.float8_e4m3fnuz,
          torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool]


def name(dtype):
    return str(dtype).removeprefix("torch.")


def counting(count, dtype, shape=None):
    """Bytes 0, 1, 2 ... read as `dtype`; the test makes the same."""
    size = torch.empty(0, dtype=dtype).element_size()
    data = torch.arange(count * size, dtype=torch.int64) % (2 if dtype == torch.bool else 251)
    tensor = data.to(torch.uint8).view(dtype)
    return tensor.reshape(shape) if shape is not None else tensor


def every_dtype():
    return {f"t.{name(dtype)}": counting(6, dtype, (2, 3)) for dtype in DTYPES}


def awkward():
    return {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "row": counting(5, torch.uint8),
        'quote " back \\ slash': counting(1, torch.float32),
        "tab\tnewline\nbell\x07": counting(2, torch.float32),
        "größe 図": counting(3, torch.bfloat16),
    }


def views():
    """Strides, offsets, and two pairs that share memory."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tied = torch.arange(6, dtype=torch.float16)
    return {
        "base": base,
        "transposed": base.t(),
        "column": base[:, 2],
        "corner": base[1:3, 4:],
        "tied.a": tied,
        "tied.b": tied,
    }


def module():
    """A state dict as training code saves it: an OrderedDict with _metadata."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    return net.state_dict()


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                          pathlib.Path(__file__).parent.parent / "tests/golden/weights")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(every_dtype(), folder / "every_dtype.safetensors", metadata={"format": "pt"})
    safetensors.torch.save_file(awkward(), folder / "awkward.safetensors", metadata={"format": "pt"})
    torch.save(every_dtype(), folder / "every_dtype.bin")
    torch.save(awkward(), folder / "awkward.bin")
    torch.save(awkward(), folder / "awkward_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(every_dtype(), folder / "every_dtype_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(views(), folder / "views.bin")
    torch.save(views(), folder / "views_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(module(), folder / "module.bin")
    torch.save(module(), folder / "module_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(dict(torch.nn.Linear(2, 1).named_parameters()), folder / "parameters.bin")
    torch.save({"state_dict": {"x": torch.ones(2)}, "epoch": 3, "args": {"lr": 1e-3, "betas": (0.9, 0.999)}},
               folder / "nested.bin")
    torch.save({"x": torch.tensor([7.0]).expand(3, 2)}, folder / "expanded.bin")
    torch.save({"only": torch.full((2, 2), 3.0)}, folder / "protocol4.bin", pickle_protocol=4)
    (folder / "module.json").write_text(json.dumps(
        {key: value.flatten().tolist() for key, value in module().items()}, indent=1) + "\n")


main()
