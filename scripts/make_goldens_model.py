#!/usr/bin/env python3
"""Makes tests/golden/model: tiny random models of every family, with what transformers computes.

Each case is a model folder plus case.safetensors (inputs and outputs) and case.json (where rows and
pictures lie). Needs torch 2.11, transformers 5.24, safetensors; no network.

    make_goldens_model.py OUT                     the committed cases
    make_goldens_model.py OUT --random N --seed S N cases of random configurations
"""
import argparse
import json
import pathlib
import random

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
TEXTS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def pixel_values(tiles):
    """Bytes -> floats in the order of operations of CLIPImageProcessor."""
    scaled = (tiles.numpy().astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy((scaled - MEAN[:, None, None]) / STD[:, None, None])


def shake(model, scale):
    """Spreads weights so that every part matters to the result."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(scale)
            elif "norm" in name and name.endswith("weight"):
                weight.add_(torch.randn_like(weight) * 0.2)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def text_config(case):
    return TEXTS[case["text"]](**{
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **case.get("text_config", {})})


def vision_config(case):
    return CLIPVisionConfig(**{
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 14, "patch_size": 7, "projection_dim": 16,
        **case.get("vision_config", {})})


def make_tiles(rng, count, side):
    """Random pictures with structure: noise would make all features alike."""
    small = torch.from_numpy(rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))
    big = nn.functional.interpolate(small.float(), (side, side), mode="bilinear")
    noise = torch.from_numpy(rng.integers(-20, 21, (count, 3, side, side)))
    return (big + noise).clamp(0, 255).to(torch.uint8)


def rows_of(case, rng, vocab, features):
    """Rows of ids with -200 where each picture goes; pictures in order, spread over rows."""
    rows = [[] for _ in range(case.get("rows", 2))]
    for i in range(len(features)):
        rows[i % len(rows)].append(i)
    pictures = [i for row in rows for i in row]  # their order in the batch
    ids = []
    for row in rows:
        text = lambda: [int(x) for x in rng.integers(3, vocab - 6, int(rng.integers(2, 7)))]
        line = [1] + text()
        for _ in row:
            line += [-200] + text()
        ids.append(line)
    return ids, pictures


class OriginalProjector(nn.Sequential):
    """haotian-liu/LLaVA 1.2.2, multimodal_projector/builder.py."""

    def __init__(self, kind, width, hidden):
        if kind == "linear":
            super().__init__()
            self.linear = nn.Linear(width, hidden)
        elif kind == "identity":
            super().__init__()
        else:
            depth = int(kind[3:].split("x")[0])
            layers = [nn.Linear(width, hidden)]
            for _ in range(depth - 1):
                layers += [nn.GELU(), nn.Linear(hidden, hidden)]
            super().__init__(*layers)
        self.kind = kind

    def forward(self, x):
        return self.linear(x) if self.kind == "linear" else super().forward(x)

    def tensors(self):
        if self.kind == "linear":
            return {"model.mm_projector.weight": self.linear.weight,
                    "model.mm_projector.bias": self.linear.bias}
        return {"model.mm_projector." + k: v for k, v in self.state_dict().items()}


def forget_earlier_lengths(rotary):
    """Dynamic scaling remembers the longest row so far; every row here is a first one."""
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    rotary.inv_freq = rotary.original_inv_freq.clone()


def run_rows(language, head, embed, ids, pictures, features):
    """Logits [T, V] of all rows, one after the other, each row alone."""
    order = {picture: i for i, picture in enumerate(pictures)}
    taken, logits, starts = iter(pictures), [], [0]
    for row in ids:
        forget_earlier_lengths(language.rotary_emb)
        pieces = []
        for token in row:
            if token == -200:
                pieces.append(features[next(taken)])
            else:
                pieces.append(embed(torch.tensor([token])))
        embeds = torch.cat([piece.to(embed.weight.dtype) for piece in pieces])
        hidden = language(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
        logits.append(head(hidden)[0].float())
        starts.append(starts[-1] + len(embeds))
    assert len(order) == len(pictures)
    return torch.cat(logits), starts


def hugging_face_model(case):
    family = case["family"]
    config_class, model_class = {
        "llava": (LlavaConfig, LlavaForConditionalGeneration),
        "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration),
        "llava_next_video": (LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration),
    }[family]
    side = vision_config(case).image_size
    extra = dict(case.get("config", {}))
    if family != "llava":
        extra.setdefault("image_grid_pinpoints", [
            [side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side],
            [side, 3 * side]])
    if family == "llava_next_video":
        extra["video_token_index"] = text_config(case).vocab_size - 2
    config = config_class(vision_config=vision_config(case), text_config=text_config(case),
                          image_token_index=text_config(case).vocab_size - 3, **extra)
    config._attn_implementation = case.get("attention", "sdpa")
    return shake(model_class(config), case.get("scale", 4.0)).eval().to(case["dtype"])


def hugging_face_case(case, folder, rng):
    family = case["family"]
    model = hugging_face_model(case)
    config, side = model.config, model.config.vision_config.image_size
    vocab = config.text_config.vocab_size

    tiles, features, shapes, first = [], [], [], 0
    core = model.model
    for width, height in case.get("images", []):
        count = 1 if family == "llava" else image_size_to_num_patches(
            [height, width], config.image_grid_pinpoints, side)
        own = make_tiles(rng, count, side)
        pixels = pixel_values(own).to(case["dtype"])
        if family == "llava":
            rows = core.get_image_features(pixel_values=pixels).pooler_output[0]
        else:
            rows = core.get_image_features(
                pixel_values=pixels, image_sizes=torch.tensor([[height, width]])).pooler_output[0]
        shapes.append({"first_tile": first, "width": width, "height": height, "frames": 0})
        tiles.append(own)
        features.append(rows)
        first += count
    for frames in case.get("videos", []):
        own = make_tiles(rng, frames, side)
        pixels = pixel_values(own).to(case["dtype"])
        rows = core.get_video_features(pixel_values_videos=pixels[None]).pooler_output[0]
        shapes.append({"first_tile": first, "width": side, "height": side, "frames": frames})
        tiles.append(own)
        features.append(rows)
        first += frames

    states = None
    if tiles:
        out = core.vision_tower(pixel_values(torch.cat(tiles)).to(case["dtype"]),
                                output_hidden_states=True)
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        cut = 1 if config.vision_feature_select_strategy == "default" else 0
        states = torch.cat([out.hidden_states[i][:, cut:] for i in layers], -1)
    ids, pictures = rows_of(case, rng, vocab, features)
    logits, starts = run_rows(core.language_model, model.lm_head, core.get_input_embeddings(), ids,
                              pictures, features)
    if family == "llava" and features:  # the whole model's own forward agrees with the pieces
        row, numbers, k = [], [], 0
        for token in ids[0]:
            if token == -200:
                row += [config.image_token_index] * len(features[pictures[k]])
                numbers.append(pictures[k])
                k += 1
            else:
                row.append(token)
        pixels = pixel_values(torch.cat([tiles[i] for i in numbers])).to(case["dtype"])
        whole = model(input_ids=torch.tensor([row]), pixel_values=pixels).logits[0].float()
        assert (whole - logits[:len(row)]).abs().max() < 2e-2 * logits.abs().max(), case["name"]
    model.save_pretrained(folder)
    return tiles, states, features, shapes, ids, pictures, logits, starts


def original_parts(case):
    """Tower, projector and decoder of the reference's own path."""
    vision = shake(CLIPVisionModel(vision_config(case)), 4.0).eval().to(case["dtype"])
    config = text_config(case)
    text = shake(AutoModelForCausalLM.from_config(config), 4.0).eval().to(case["dtype"])
    projector = shake(OriginalProjector(case["projector"], vision.config.hidden_size,
                                        config.hidden_size), 1.5).eval().to(case["dtype"])
    return vision, projector, text


def save_original(case, folder, vision, projector, text):
    """Files in the reference's layout."""
    tensors = dict(text.state_dict())
    tensors.update(projector.tensors())
    if case.get("tower_inside"):
        prefix = "model.vision_tower.vision_tower.vision_model."
        tensors.update({prefix + k.removeprefix("vision_model."): v
                        for k, v in vision.state_dict().items() if "position_ids" not in k})
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})
    tower = folder / "tower"
    vision.config.save_pretrained(tower)
    if not case.get("tower_inside"):
        vision.save_pretrained(tower)
    written = {k: v for k, v in text.config.to_dict().items() if k in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
        "bos_token_id", "eos_token_id", "pad_token_id")}
    written.update({
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava",
        "mm_vision_tower": "tower", "mm_projector_type": case["projector"],
        "mm_hidden_size": vision.config.hidden_size, "mm_vision_select_layer": -2,
        "mm_vision_select_feature": case.get("select", "patch"), "image_aspect_ratio": "pad"})
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")


def original_case(case, folder, rng):
    vision, projector, text = original_parts(case)
    config, side = text.config, vision.config.image_size
    tiles, features, shapes, selected = [], [], [], []
    select = case.get("select", "patch")
    for i, (width, height) in enumerate(case["images"]):
        own = make_tiles(rng, 1, side)
        out = vision(pixel_values(own).to(case["dtype"]), output_hidden_states=True)
        states = out.hidden_states[-2]
        states = {"patch": states[:, 1:], "cls_patch": states, "cls": states[:, :1]}[select]
        selected.append(states)
        features.append(projector(states)[0])
        shapes.append({"first_tile": i, "width": width, "height": height, "frames": 0})
        tiles.append(own)
    ids, pictures = rows_of(case, rng, config.vocab_size, features)
    logits, starts = run_rows(text.model, text.lm_head, text.model.embed_tokens, ids, pictures,
                              features)
    save_original(case, folder, vision, projector, text)
    return tiles, torch.cat(selected), features, shapes, ids, pictures, logits, starts


def make_case(case, root):
    torch.manual_seed(case["seed"])
    rng = np.random.default_rng(case["seed"])
    case = {"dtype": torch.float32, **case}
    folder = root / case["name"]
    maker = original_case if case["family"] == "original" else hugging_face_case
    with torch.no_grad():
        tiles, states, features, shapes, ids, pictures, logits, starts = maker(case, folder, rng)
    # The batch holds pictures in the order of their slots.
    first, ordered = 0, []
    for picture in pictures:
        count = len(tiles[picture])
        ordered.append({**shapes[picture], "first_tile": first,
                        "rows": len(features[picture]), "tiles": count})
        first += count
    tensors = {"ids": torch.tensor([token for row in ids for token in row]), "logits": logits}
    if pictures:
        tensors["tiles"] = torch.cat([tiles[i] for i in pictures])
        by_picture, at = [], 0
        for own in tiles:
            by_picture.append(states[at:at + len(own)])
            at += len(own)
        tensors["vision_features"] = torch.cat([by_picture[i] for i in pictures]).float()
        tensors["image_features"] = torch.cat([features[i] for i in pictures]).float()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "case.safetensors")
    row_starts = [0]
    for row in ids:
        row_starts.append(row_starts[-1] + len(row))
    info = {"starts": row_starts, "spliced_starts": starts, "pictures": ordered,
            "dtype": str(case["dtype"]).removeprefix("torch.")}
    (folder / "case.json").write_text(json.dumps(info) + "\n")
    for junk in ("generation_config.json",):
        (folder / junk).unlink(missing_ok=True)


GOLDEN = [
    {"name": "llava-llama", "family": "llava", "text": "llama", "images": [(40, 30), (20, 50)]},
    {"name": "llava-full-gqa-two-layers", "family": "llava", "text": "mistral",
     "text_config": {"sliding_window": None, "head_dim": 6},
     "config": {"vision_feature_select_strategy": "full", "vision_feature_layer": [-2, 1]},
     "images": [(28, 28)]},
    {"name": "llava-qwen2-tied", "family": "llava", "text": "qwen2",
     "text_config": {"tie_word_embeddings": True}, "config": {"tie_word_embeddings": True},
     "images": [(28, 28)]},
    {"name": "llava-linear-rope", "family": "llava", "text": "llama",
     "text_config": {"rope_scaling": {"type": "linear", "factor": 2.5}, "attention_bias": True,
                     "mlp_bias": True},
     "vision_config": {"hidden_act": "gelu", "num_attention_heads": 1}, "images": [(28, 28)]},
    {"name": "llava-dynamic-rope", "family": "llava", "text": "llama",
     "text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0},
                     "max_position_embeddings": 8}, "images": [(28, 28)]},
    {"name": "llava-llama3-rope", "family": "llava", "text": "llama",
     "text_config": {"rope_theta": 500000.0, "rope_scaling": {
         "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16}}, "images": [(28, 28)]},
    {"name": "llava-bfloat16", "family": "llava", "text": "llama", "dtype": torch.bfloat16,
     "images": [(28, 28)], "scale": 2.0, "attention": "eager"},
    {"name": "next-vicuna", "family": "llava_next", "text": "llama", "rows": 2,
     "images": [(40, 30), (101, 47), (23, 90), (56, 56)]},
    {"name": "next-mistral", "family": "llava_next", "text": "mistral",
     "text_config": {"sliding_window": None}, "images": [(100, 33), (33, 100)]},
    {"name": "next-video", "family": "llava_next_video", "text": "llama",
     "vision_config": {"image_size": 28}, "images": [(80, 60)], "videos": [3]},
    {"name": "original-linear", "family": "original", "text": "llama", "projector": "linear",
     "images": [(28, 28), (30, 20)]},
    {"name": "original-mlp3-cls-patch", "family": "original", "text": "llama",
     "projector": "mlp3x_gelu", "select": "cls_patch", "tower_inside": True,
     "images": [(28, 28)]},
    {"name": "original-class-token", "family": "original", "text": "llama",
     "projector": "linear", "select": "cls", "images": [(28, 28), (28, 28), (28, 28)]},
]


def random_case(number, seed):
    pick = random.Random(seed * 1000003 + number)
    family = pick.choice(["llava", "llava", "llava_next", "llava_next", "llava_next_video",
                          "original"])
    text = pick.choice(["llama", "llama", "mistral", "qwen2"]) if family != "original" else "llama"
    heads = pick.choice([2, 4, 6, 8])
    kv = pick.choice([h for h in (1, 2, 3, 4, 6, 8) if heads % h == 0])
    head_dim = pick.choice([4, 8, 10, 16])
    config = {"num_attention_heads": heads, "num_key_value_heads": kv,
              "hidden_size": heads * head_dim, "intermediate_size": pick.choice([24, 40, 100]),
              "num_hidden_layers": pick.choice([1, 2, 3]), "vocab_size": pick.choice([64, 99, 200]),
              "max_position_embeddings": pick.choice([64, 512, 4096]),
              "rms_norm_eps": pick.choice([1e-5, 1e-6])}
    if text == "llama" and family != "original":
        config["attention_bias"] = pick.random() < 0.3
        config["mlp_bias"] = pick.random() < 0.3
        if pick.random() < 0.3:
            config["head_dim"] = pick.choice([6, 12, 20])
    if text == "mistral":
        config["sliding_window"] = pick.choice([None, 4096])
    if family != "original" and pick.random() < 0.6:
        config["rope_theta"] = pick.choice([1e4, 1e6, 5e5])
        config["rope_scaling"] = pick.choice([
            None, {"type": "linear", "factor": pick.choice([2.0, 4.0, 2.5])},
            {"rope_type": "dynamic", "factor": pick.choice([2.0, 3.0])},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}])
        if config["rope_scaling"] and config["rope_scaling"].get("rope_type") == "dynamic":
            config["max_position_embeddings"] = pick.choice([16, 64])
    patch = pick.choice([7, 14])
    vision_heads = pick.choice([1, 2, 4])
    vision = {"patch_size": patch, "image_size": patch * pick.choice([2, 3, 4, 6]),
              "num_attention_heads": vision_heads, "hidden_size": vision_heads * pick.choice([8, 12]),
              "num_hidden_layers": pick.choice([2, 3, 4]),
              "hidden_act": pick.choice(["quick_gelu", "quick_gelu", "gelu"])}
    if family == "llava_next_video" and vision["image_size"] // patch % 2:
        vision["image_size"] += patch
    sizes = [(pick.randint(10, 200), pick.randint(10, 200)) for _ in range(pick.choice([1, 2, 3]))]
    case = {"name": f"random-{seed}-{number}", "seed": pick.randrange(10**6), "family": family,
            "text": text, "text_config": config, "vision_config": vision, "images": sizes,
            "rows": pick.choice([1, 2, 3]), "scale": pick.choice([2.0, 3.0])}
    if family == "llava":
        case["config"] = {"vision_feature_layer": pick.choice([-2, -1, -2, [-2, -1], 1]),
                          "vision_feature_select_strategy": pick.choice(["default", "full"]),
                          "projector_hidden_act": pick.choice(["gelu", "gelu", "quick_gelu"]),
                          "multimodal_projector_bias": pick.random() < 0.8}
        if pick.random() < 0.2:
            case["text_config"]["tie_word_embeddings"] = True
            case["config"]["tie_word_embeddings"] = True
    if family == "llava_next_video":
        case["videos"] = [pick.choice([1, 2, 5])]
        case["config"] = {"spatial_pool_mode": pick.choice(["average", "max"]),
                          "spatial_pool_stride": 2}
    if family == "original":
        case["projector"] = pick.choice(["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp4x_gelu"])
        case["select"] = pick.choice(["patch", "cls_patch", "cls"])
        case["tower_inside"] = pick.random() < 0.5
    return case


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cases = [{**case, "seed": i} for i, case in enumerate(GOLDEN)]
    if args.random:
        cases = [random_case(i, args.seed) for i in range(args.random)]
    for case in cases:
        make_case(case, args.out)
        print(case["name"])


if __name__ == "__main__":
    main()
