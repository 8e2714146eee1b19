#!/usr/bin/env python3
"""Writes tests/golden/train/<case>.safetensors: one training step and 20 AdamW steps of a tiny LLaVA
in transformers, torch and peft. See the README.md there.

Weights and pictures are made by a formula that tests/train/parity_test.cpp has too, so that only
results need to be kept. Usage: make_goldens_train.py OUTPUT_FOLDER
"""
import json
import math
import pathlib
import sys
import zlib

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration,
                          get_cosine_schedule_with_warmup)

IMAGE, ROWS, SIDE, STEPS = 63, 4, 28, 20
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def mix(x):
    """splitmix64's output function, on uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def weight(name, shape):
    """Values from the name alone: norms near 1, the rest within +-0.3."""
    count = math.prod(shape)
    seed = np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
    share = (mix(seed + np.arange(count, dtype=np.uint64)) >> np.uint64(40)).astype(np.float64) / 2**24
    values = (share - 0.5) * 0.6
    if "norm" in name and name.endswith("weight"):
        values = 1 + values / 3
    return torch.tensor(values.astype(np.float32)).view(shape)


def tile(number):
    """Bytes of picture `number`, [3, 28, 28]."""
    j = np.arange(3 * SIDE * SIDE)
    return torch.tensor(((j * 37 + j // 251 + 11 * number) % 256).astype(np.uint8)).view(3, SIDE, SIDE)


def our_name(name):
    """The name in this library of a parameter of the (peft-wrapped) Hugging Face model."""
    name = name.replace("base_model.model.", "").replace(".base_layer", "").replace(".default", "")
    name = name.replace("modules_to_save.", "").replace("original_module.", "")
    for theirs, ours in (("model.vision_tower.", "vision."), ("model.language_model.", "llama."),
                         ("model.multi_modal_projector.linear_1.", "projector.0."),
                         ("model.multi_modal_projector.linear_2.", "projector.2."),
                         ("model.multi_modal_projector.", "projector.")):
        if name.startswith(theirs):
            return ours + name[len(theirs):]
    return name


class LinearProjector(torch.nn.Linear):
    """LLaVA v1's projector, which transformers has no class for."""


def make_model(projector):
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                              num_attention_heads=2, image_size=SIDE, patch_size=14, projection_dim=16)
    text = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=4,
                       max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=10000.0)
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2,
        projector_hidden_act="gelu"))
    if projector == "linear":
        model.model.multi_modal_projector = LinearProjector(16, 16)
    return model.float()


# A row: ids (-200 where a picture goes), how many of its last tokens are learned.
BATCHES = [
    [([1, -200, 5, 6, 7, 8, 2], 4), ([1, 9, -200, 10, 11, 2], 3)],
    [([1, -200, 20, 21, 22, 23, 24, 2], 2), ([1, 30, 31, 32, 33, 2], 4)],
    [([1, 40, 41, -200, 42, 2], 2), ([1, 50, -200, 51, -200, 52, 53, 2], 3), ([1, 54, 55, 2], 2)],
    [([1, 12, 13, 14, 15, 2], 3), ([1, 16, 17, 2], 1)],
]


def tensors(batch, first_picture):
    """Right-padded ids, mask, labels and pixels as transformers takes them."""
    rows, number, pixels = [], first_picture, []
    for ids, learned in batch:
        labels = [-100] * (len(ids) - learned) + ids[len(ids) - learned:]
        out_ids, out_labels = [], []
        for id_, label in zip(ids, labels):
            if id_ == -200:
                out_ids += [IMAGE] * ROWS
                out_labels += [-100] * ROWS
                pixels.append((tile(number).float() / 255 - MEAN) / STD)
                number += 1
            else:
                out_ids.append(id_)
                out_labels.append(label)
        rows.append((out_ids, out_labels))
    longest = max(len(ids) for ids, _ in rows)
    made = {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),
    }
    if pixels:
        made["pixel_values"] = torch.stack(pixels)
    return made


def learns(case, name):
    if name.startswith("projector."):
        return True
    if name.startswith("vision."):
        used = "encoder.layers.1" not in name and "post_layernorm" not in name
        return case == "all" and used
    return ".lora_" in name if case == "lora" else case in ("stage2", "all")


def run(case, projector, folder):
    model = make_model(projector)
    if case == "lora":
        targets = r".*language_model\.layers\..*\.(q|k|v|o|gate|up|down)_proj"
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0,
                                                 target_modules=targets))
    parameters = {}
    for name, parameter in model.named_parameters():
        ours = our_name(name)
        parameters[ours] = parameter
        parameter.data.copy_(weight(ours, parameter.shape))
        parameter.requires_grad_(learns(case, ours))
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    model.train()

    batches, picture = [], 0
    for batch in BATCHES[:3] if case == "stage1" else BATCHES:
        batches.append(tensors(batch, picture))
        picture += sum(ids.count(-200) for ids, _ in batch)

    kept, losses = {}, []
    for number, batch in enumerate(batches):
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        if number in (0, 3):  # pictures in every row; none at all
            for name, parameter in trained.items():
                if parameter.grad is not None:
                    kept[f"grad.{number}.{name}"] = parameter.grad.clone()
        model.zero_grad()
    kept["first_losses"] = torch.tensor(losses)

    no_decay = lambda name: "bias" in name or "norm" in name
    optimizer = torch.optim.AdamW(
        [{"params": [p for n, p in trained.items() if not no_decay(n)], "weight_decay": 0.1},
         {"params": [p for n, p in trained.items() if no_decay(n)], "weight_decay": 0.0}], lr=2e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, STEPS)
    losses, norms = [], []
    for step in range(STEPS):
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        for parameter in trained.values():  # as the reference's dummy pictures make them
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0).item())
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    kept["losses"], kept["norms"] = torch.tensor(losses), torch.tensor(norms)
    for name, parameter in trained.items():
        kept["after." + name] = parameter.detach().clone()
    save_file({name: t.contiguous() for name, t in kept.items()},
              folder / f"{case}_{projector}.safetensors")
    print(case, projector, len(trained), "tensors learn; losses", [round(x, 4) for x in losses[:4]])


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for projector in ("mlp2x_gelu", "linear"):
        for case in ("stage1", "stage2", "lora"):
            run(case, projector, folder)
    run("all", "mlp2x_gelu", folder)
    (folder / "batches.json").write_text(json.dumps(BATCHES) + "\n")


main()
