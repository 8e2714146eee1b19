// PyTorch's .bin / .pt files: a pickle that describes tensors, and their storages as raw bytes, in
// a zip of stored entries (since torch 1.6) or one after the other (before).
//
// A pickle is a program. This reader interprets the few operations that describe dictionaries of
// tensors and refuses every other one, and every other global by name; nothing is ever executed.
// Source: pytorch/pytorch 2.11, torch/serialization.py, torch/_weights_only_unpickler.py.
#pragma once

#include "llava/weights/state_dict.h"

#include <string>

namespace llava::weights {

/// The tensors of a dict or OrderedDict, one level down when the file holds them under
/// "state_dict", "model" or "module". Storages are mapped, not copied, and shared by the tensors
/// that share them; strides are kept.  Throws Error(data) naming the file and what is wrong.
StateDict load_torch_file(const std::string& path);

/// Writes a zip that `torch.load(path, weights_only=True)` reads as a plain dict of tensors, one
/// tensor in memory at a time. The file appears when complete. Strided tensors are packed; tensors
/// that are the same memory are written once.
void save_torch_file(const std::string& path, const StateDict& state);

}  // namespace llava::weights
