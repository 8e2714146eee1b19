#!/usr/bin/env python3
"""Makes tests/golden/generate/*.json: what transformers' logits processors and beam search do.

usage: make_goldens_generate.py OUT_FOLDER
"""
import json
import pathlib
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (LogitsProcessorList, MinPLogitsWarper,
                                                    RepetitionPenaltyLogitsProcessor,
                                                    TemperatureLogitsWarper, TopKLogitsWarper,
                                                    TopPLogitsWarper)

V = 16


def filtered(logits, seen, config):
    """The processors in the order in which GenerationMixin._get_logits_processor builds them."""
    chain = LogitsProcessorList()
    if config.get("repeat_penalty", 1) != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(config["repeat_penalty"]))
    chain.append(TemperatureLogitsWarper(float(config["temperature"])))
    if config.get("top_k", 0):
        chain.append(TopKLogitsWarper(config["top_k"]))
    if config.get("top_p", 1) < 1:
        chain.append(TopPLogitsWarper(config["top_p"]))
    if config.get("min_p", 0):
        chain.append(MinPLogitsWarper(config["min_p"]))
    return chain(torch.tensor([seen]), logits[None].clone())[0]


def sampling():
    torch.manual_seed(1)
    configs = [
        {"temperature": 1.0},
        {"temperature": 0.2},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 0.9, "top_p": 0.05},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "repeat_penalty": 1.3},
        {"temperature": 0.8, "repeat_penalty": 0.7, "top_k": 12},
        {"temperature": 1.1, "top_k": 10, "top_p": 0.8, "min_p": 0.08, "repeat_penalty": 1.2},
    ]
    cases = []
    for index, config in enumerate(configs * 3):
        logits = torch.randn(V) * 3
        if index % 3 == 2:
            logits[3] = logits[7] = logits[11]  # ties
        seen = torch.randint(0, V, (6,)).tolist()
        want = [None if x == float("-inf") else x for x in filtered(logits, seen, config).tolist()]
        cases.append({"config": config, "seen": seen, "logits": logits.tolist(), "filtered": want})
    return cases


def bigram_model(table):
    """A Llama whose next logits are a table's row of the last token: attention and MLP add nothing."""
    config = LlamaConfig(vocab_size=V, hidden_size=V, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, head_dim=4, rms_norm_eps=0.0,
                         max_position_embeddings=64, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1)
            layer.post_attention_layernorm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(V))
        model.lm_head.weight.copy_(table.t() / V**0.5)
    return model


def beams():
    cases = []
    for seed in range(12):
        torch.manual_seed(seed)
        table = (torch.randn(V, V) * 32).round() / 16  # short to write down
        eos = 2
        table[:, eos] += 1.0 + 0.5 * (seed % 4)
        model = bigram_model(table)
        model.generation_config.eos_token_id = eos
        for num_beams, new_tokens, length_penalty in ((2, 6, 1.0), (4, 8, 1.0), (5, 12, 1.0), (3, 10, 2.0)):
            out = model.generate(torch.tensor([[1]]), num_beams=num_beams, max_new_tokens=new_tokens,
                                 do_sample=False, length_penalty=length_penalty, pad_token_id=0,
                                 return_dict_in_generate=True, output_scores=True)
            cases.append({"table": seed, "num_beams": num_beams, "max_new_tokens": new_tokens,
                          "length_penalty": length_penalty, "ids": out.sequences[0, 1:].tolist(),
                          "score": out.sequences_scores[0].item()})
        cases[-1]["logits"] = table.tolist()
    return {"vocab": V, "eos": 2, "first": 1, "cases": cases}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    assert transformers.__version__ == "5.24.0", transformers.__version__
    (folder / "sampling.json").write_text(json.dumps(sampling()))
    (folder / "beams.json").write_text(json.dumps(beams()))


if __name__ == "__main__":
    main()
