#include "llava/nn/token_step.h"

#include "cpu_attention.h"
#include "cpu_kernels.h"
#include "cpu_rows.h"
#include "llava/base/check.h"
#include "packed_products.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace llava::nn {
namespace {

using Bits = std::uint16_t;  // of a bfloat16 number

Product product(const PackedLinear& linear, std::vector<Bits>& y) {
  return {linear.weight.get(),
          linear.bias.defined() ? linear.bias.const_data_ptr<float>() : nullptr, y.data()};
}

std::size_t numbers(std::int64_t rows, std::int64_t width) {
  return static_cast<std::size_t>(rows * width);
}

}  // namespace

/// What a step works in, for as many rows as have come together so far.
struct TokenStep::Room {
  std::int64_t rows = 0;
  std::vector<Bits> x, normed;          // [B, D]
  std::vector<Bits> q, k, v, attended;  // [B, H E], [B, K E], [B, K E], [B, H E]
  std::vector<Bits> gated;              // [B, F]
  std::vector<Bits> logits;             // [B, V]
  std::vector<Bits> cos, sin;           // [B, E/2]

  void fit(std::int64_t count, const TokenDecoder& decoder) {
    if (count <= rows) return;
    rows = count;
    const auto D = decoder.embeddings.size(1), E = decoder.head_size;
    for (auto* part : {&x, &normed}) part->resize(numbers(rows, D));
    for (auto* part : {&q, &attended}) part->resize(numbers(rows, decoder.heads * E));
    for (auto* part : {&k, &v}) part->resize(numbers(rows, decoder.kv_heads * E));
    if (!decoder.layers.empty())
      gated.resize(numbers(rows, decoder.layers[0].up.weight->outputs()));
    logits.resize(numbers(rows, decoder.head.weight->outputs()));
    for (auto* part : {&cos, &sin}) part->resize(numbers(rows, E / 2));
  }
};

bool TokenStep::is_possible() { return cpu::avx512_kernels() != nullptr; }

TokenStep::TokenStep(TokenDecoder decoder)
    : decoder_(std::move(decoder)), room_(std::make_unique<Room>()) {}
TokenStep::~TokenStep() = default;

void TokenStep::forward(std::span<const NextToken> tokens) {
  const auto& kernels = cpu::kernels();
  const auto B = static_cast<std::int64_t>(tokens.size());
  const auto D = decoder_.embeddings.size(1), E = decoder_.head_size;
  for (const auto& token : tokens) {
    token.cache->expect_room(1);
    expect(token.id >= 0 && token.id < decoder_.embeddings.size(0), Fault::usage, "token ",
           token.id, " is none of the ", decoder_.embeddings.size(0), " of the vocabulary");
  }
  room_->fit(B, decoder_);
  auto& room = *room_;

  for (std::int64_t row = 0; row < B; ++row) {
    const auto& token = tokens[static_cast<std::size_t>(row)];
    std::copy_n(bfloat16_bits(decoder_.embeddings) + token.id * D, D, room.x.data() + row * D);
    const auto [cos, sin] = decoder_.rotary.bfloat16_row(token.cache->length());
    std::copy_n(cos.data(), E / 2, room.cos.data() + row * (E / 2));
    std::copy_n(sin.data(), E / 2, room.sin.data() + row * (E / 2));
  }
  const auto norm = [&](const torch::Tensor& weight) {
    for (std::int64_t row = 0; row < B; ++row)
      kernels.rms_norm(room.x.data() + row * D, bfloat16_bits(weight), D,
                       static_cast<float>(decoder_.eps), room.normed.data() + row * D);
  };
  const auto rows = [B](const std::vector<Bits>& x, const PackedLinear& linear) -> InputRows {
    return {x.data(), /*is_bfloat16=*/true, B, linear.weight->inputs()};
  };

  for (std::size_t i = 0; i < decoder_.layers.size(); ++i) {
    const auto& layer = decoder_.layers[i];
    norm(layer.input_norm);
    const Product qkv[] = {product(layer.q, room.q), product(layer.k, room.k),
                           product(layer.v, room.v)};
    multiply_rows(rows(room.normed, layer.q), qkv, /*y_is_bfloat16=*/true);
    attend(static_cast<std::int64_t>(i), tokens);
    multiply_and_add(rows(room.attended, layer.o), product(layer.o, room.x), room.x.data());
    norm(layer.post_attention_norm);
    multiply_gated(rows(room.normed, layer.gate), product(layer.gate, room.gated),
                   product(layer.up, room.gated));
    multiply_and_add(rows(room.gated, layer.down), product(layer.down, room.x), room.x.data());
  }
  norm(decoder_.norm);
  const Product head[] = {product(decoder_.head, room.logits)};
  multiply_rows(rows(room.normed, decoder_.head), head, /*y_is_bfloat16=*/true);

  const auto V = decoder_.head.weight->outputs();
  for (std::int64_t row = 0; row < B; ++row) {
    const auto& token = tokens[static_cast<std::size_t>(row)];
    kernels.widen_row(room.logits.data() + row * V, V, token.logits);
    token.cache->advance(1);
  }
}

/// Turns q and k, keeps k and v, and attends to all that is kept.
void TokenStep::attend(std::int64_t layer, std::span<const NextToken> tokens) {
  const auto& kernels = cpu::kernels();
  const auto H = decoder_.heads, K = decoder_.kv_heads, E = decoder_.head_size, groups = H / K;
  auto& room = *room_;
  const auto work = [&](std::int64_t row, std::int64_t head) {
    const auto& cache = *tokens[static_cast<std::size_t>(row)].cache;
    const auto length = cache.length();
    const auto place = [&](const torch::Tensor& all) {  // [K, capacity, E]
      return mutable_bfloat16_bits(all) + head * all.stride(0);
    };
    auto *keys = place(cache.keys(layer)), *values = place(cache.values(layer));
    const auto *cos = room.cos.data() + row * (E / 2), *sin = room.sin.data() + row * (E / 2);
    auto* turned = scratch<Bits, struct Turned>(groups * E);
    const auto first = row * H + head * groups;
    for (std::int64_t i = 0; i < groups; ++i)
      kernels.rotate(room.q.data() + (first + i) * E, cos, sin, E / 2, turned + i * E);
    kernels.rotate(room.k.data() + (row * K + head) * E, cos, sin, E / 2, keys + length * E);
    std::copy_n(room.v.data() + (row * K + head) * E, E, values + length * E);
    kernels.attend_one(
        {.q = turned,
         .num_heads = groups,
         .head_size = E,
         .keys = keys,
         .values = values,
         .num_keys = length + 1,
         .scale = attention_scale(E),
         .output = room.attended.data() + first * E,
         .weights = scratch<float, struct Weights>(cpu::round_up(cache.capacity(), 16))});
  };
  const auto rows = static_cast<std::int64_t>(tokens.size());
  at::parallel_for(0, rows * K, 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) work(i / K, i % K);
  });
}

}  // namespace llava::nn
