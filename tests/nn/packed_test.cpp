// Packed weights and CPU kernels against plain LibTorch in float64, and the fast kernels against
// the plain ones.
#include "../src/nn/cpu_kernels.h"
#include "llava/nn/activation.h"
#include "llava/nn/attention.h"
#include "llava/nn/linear.h"
#include "llava/nn/lora.h"
#include "support/expect_error.h"

#include <gmock/gmock.h>

#include <numeric>

namespace llava::nn {
namespace {

using torch::Tensor;

double relative_error(const Tensor& found, const Tensor& expected) {
  const auto a = found.to(torch::kFloat64), b = expected.to(torch::kFloat64);
  return ((a - b).norm() / b.norm()).item<double>();
}

Tensor random(at::IntArrayRef sizes, torch::ScalarType type = torch::kFloat32) {
  return torch::randn(sizes).to(type);
}

TEST(Packed, UnpackGivesBfloat16BackAndQuantisedWeightsNearly) {
  torch::manual_seed(1);
  for (const std::int64_t outputs : {1, 63, 64, 200}) {
    const auto weight = random({outputs, 160}, torch::kBFloat16);
    const auto same = PackedWeight(weight, Packing::bfloat16).unpack(torch::kBFloat16);
    EXPECT_TRUE(torch::equal(same, weight));
    const auto narrow = weight.slice(1, 0, 86).contiguous();  // no whole number of vectors
    EXPECT_TRUE(
        torch::equal(PackedWeight(narrow, Packing::bfloat16).unpack(torch::kBFloat16), narrow));
    EXPECT_LT(relative_error(PackedWeight(weight, Packing::int8).unpack(torch::kFloat32), weight),
              0.007);
    EXPECT_LT(relative_error(PackedWeight(weight, Packing::int4).unpack(torch::kFloat32), weight),
              0.09);
  }
}

TEST(Packed, ProductsAreThoseOfTheUnpackedWeight) {
  torch::manual_seed(2);
  torch::NoGradGuard no_grad;
  const auto bias = random({200});
  for (const auto packing : {Packing::bfloat16, Packing::int8, Packing::int4})
    for (const std::int64_t rows : {1, 2, 5, 7, 100}) {
      const auto x = random({rows, 352}, torch::kBFloat16);  // more than a chunk, half a group
      const PackedWeight weight(random({200, 352}), packing);
      const auto exact = torch::linear(x.to(torch::kFloat64), weight.unpack(torch::kFloat64),
                                       bias.to(torch::kFloat64));
      const double bound =
          packing == Packing::bfloat16 ? 0.003 : 0.007;  // x becomes bytes, y bfloat16
      EXPECT_LT(relative_error(multiply(x, {&weight}, {bias})[0], exact), bound);
      const auto wide = multiply(x.to(torch::kFloat32), {&weight}, {bias})[0];
      EXPECT_EQ(wide.scalar_type(), torch::kFloat32);
      EXPECT_LT(relative_error(wide, exact), packing == Packing::bfloat16 ? 1e-6 : 0.006);
    }
}

/// A product as llama.cpp's Q8_0 makes it: weights (with scales of 11 bits) and inputs as bytes in
/// groups of 32, and no other rounding.
Tensor q8_0_product(const Tensor& x, const Tensor& weight) {
  const auto rounded = [](const Tensor& numbers) {
    const auto groups = numbers.to(torch::kFloat32).view({numbers.size(0), -1, 32});
    const auto scale = groups.abs().amax(-1, /*keepdim=*/true) / 127;
    const auto kept = scale.to(torch::kHalf).to(torch::kFloat64);
    return ((groups / scale).round().to(torch::kFloat64) * kept).view(numbers.sizes());
  };
  return torch::linear(rounded(x), rounded(weight));
}

TEST(Packed, BytesErrNoMoreThanLlamaCppsQ8) {
  torch::manual_seed(6);
  torch::NoGradGuard no_grad;
  const auto weight = random({256, 2048}) * 0.02;
  const auto plain = random({64, 2048}), gated = torch::silu(random({64, 2048})) * plain;
  for (const auto& x : {plain, gated}) {
    const auto exact = torch::linear(x.to(torch::kFloat64), weight.to(torch::kFloat64));
    const PackedWeight packed(weight, Packing::int8);
    const auto error = relative_error(multiply(x, {&packed}, {Tensor()})[0], exact);
    const auto allowed = relative_error(q8_0_product(x, weight), exact);
    EXPECT_LT(error, 0.95 * allowed);  // the weight's alone
    const CoarseInputs coarse(true);   // as a prompt's are
    const auto coarse_error = relative_error(multiply(x, {&packed}, {Tensor()})[0], exact);
    EXPECT_GT(coarse_error, error);
    EXPECT_LT(coarse_error, 2 * allowed);
  }
}

/// Counts the tensors made while it lives.
class TensorCounter : public c10::Allocator {
 public:
  TensorCounter() : next_(c10::GetAllocator(c10::kCPU)) {
    c10::SetAllocator(c10::kCPU, this, kPriority);
  }
  ~TensorCounter() override { c10::SetAllocator(c10::kCPU, next_, kPriority); }
  c10::DataPtr allocate(std::size_t bytes) override {
    ++count;
    return next_->allocate(bytes);
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    next_->copy_data(to, from, bytes);
  }
  int count = 0;

 private:
  static constexpr std::uint8_t kPriority = 255;
  c10::Allocator* next_;
};

TEST(Packed, ProductsOfARowMakeNoTensorsButTheirOutputs) {
  torch::NoGradGuard no_grad;
  const auto x = random({1, 128}, torch::kBFloat16);
  for (const auto packing : {Packing::bfloat16, Packing::int8, Packing::int4}) {
    const PackedWeight one(random({100, 128}), packing), other(random({64, 128}), packing);
    multiply(x, {&one, &other}, {Tensor(), Tensor()});  // makes the room that is kept
    TensorCounter counter;
    const auto outputs = multiply(x, {&one, &other}, {Tensor(), Tensor()});
    EXPECT_EQ(counter.count, 2);
  }
}

TEST(Packed, RowsDoNotDependOnTheirNeighbours) {
  torch::manual_seed(3);
  torch::NoGradGuard no_grad;
  const auto x = random({101, 640}, torch::kBFloat16);
  for (const auto packing : {Packing::bfloat16, Packing::int8, Packing::int4}) {
    const PackedWeight weight(random({100, 640}), packing), other(random({64, 640}), packing);
    const auto all = multiply(x, {&weight, &other}, {Tensor(), Tensor()});
    for (const std::int64_t count : {1, 2, 3, 5, 6, 7})  // rows that are taken together
      for (std::int64_t row = 0; row + count <= 101; row += 11)
        EXPECT_TRUE(torch::equal(multiply(x.slice(0, row, row + count), {&weight}, {Tensor()})[0],
                                 all[0].slice(0, row, row + count)))
            << count << " rows from " << row;
  }
}

TEST(Packed, WhatIsNoNumberStaysNone) {
  torch::NoGradGuard no_grad;
  for (const auto packing : {Packing::int8, Packing::int4})
    for (const std::int64_t place : {0, 20, 63}) {
      auto x = torch::ones({2, 128});
      x[1][place] = std::nanf("");
      const PackedWeight weight(torch::ones({70, 128}), packing);
      const auto y = multiply(x, {&weight}, {Tensor()})[0];
      EXPECT_TRUE(y[0].isfinite().all().item<bool>());
      EXPECT_TRUE(y[1].isnan().all().item<bool>());
    }
}

TEST(Packed, LinearGivesItsMemoryBackAndStillLearnsThroughItself) {
  torch::manual_seed(4);
  Linear linear(64, 32, /*with_bias=*/true, torch::TensorOptions(torch::kFloat32));
  {
    torch::NoGradGuard no_grad;
    linear->weight.normal_();
    linear->bias.normal_();
  }
  linear->weight.requires_grad_(false);
  pack_linears(*linear, Packing::int4);
  EXPECT_TRUE(linear->weight.is_meta());
  const auto x = random({5, 64}).requires_grad_();
  linear(x).sum().backward();
  const auto weight = linear->packed->unpack(torch::kFloat32);
  EXPECT_TRUE(torch::allclose(x.grad(), weight.sum(0).expand({5, 64}), 1e-5, 1e-5));
  EXPECT_TRUE(torch::allclose(linear(x), torch::linear(x, weight, linear->bias), 1e-5, 1e-5));
}

TEST(Packed, LoraOnAPackedLinearIsNotMerged) {
  Linear linear(64, 32, /*with_bias=*/false, torch::TensorOptions(torch::kFloat32));
  {
    torch::NoGradGuard no_grad;
    linear->weight.normal_();
  }
  linear->pack(Packing::int8);
  attach_lora(linear, {.r = 2, .alpha = 4, .dropout = 0}, /*seed=*/1);
  EXPECT_THAT(support::error_of(Fault::usage, [&] { merge_lora(linear); }),
              testing::HasSubstr("--bits"));
}

TEST(Packed, InputsThatGroupsDoNotDivideAreLeftAlone) {
  EXPECT_TRUE(can_pack(96, Packing::int4));
  EXPECT_FALSE(can_pack(100, Packing::int4));
  EXPECT_FALSE(can_pack(33, Packing::bfloat16));
  EXPECT_THAT(support::error_of(Fault::usage,
                                [] {
                                  PackedWeight(torch::ones({2, 100}), Packing::int8);
                                }),
              testing::HasSubstr("100 inputs"));
}

// ── Fast kernels against plain ones; on a CPU without AVX-512 there is nothing to compare ───────

std::vector<std::uint16_t> bits(const Tensor& x) {
  const auto flat = x.to(torch::kBFloat16).contiguous();
  const auto* from = reinterpret_cast<const std::uint16_t*>(flat.const_data_ptr<at::BFloat16>());
  return {from, from + flat.numel()};
}

Tensor tensor_of(const std::vector<std::uint16_t>& bits) {
  auto copy = bits;
  return torch::from_blob(copy.data(), {static_cast<std::int64_t>(bits.size())}, torch::kBFloat16)
      .clone();
}

/// Rows x [M, K] as bytes in tiles, as cpu::ByteRows wants them, and what they leave of x.
struct Tiles {
  Tiles(const cpu::Kernels& kernels, const Tensor& x, int bits)
      : inputs(x.size(1)), rest(static_cast<std::size_t>(x.numel())) {
    const auto M = x.size(0), groups = cpu::row_groups(inputs);
    for (std::int64_t first = 0; first < M;) {
      const auto some = cpu::tile_rows(M - first);
      std::vector<std::int8_t> bytes(static_cast<std::size_t>(some * inputs));
      std::vector<float> sizes(static_cast<std::size_t>(some * groups));
      const auto num_sums = inputs / 32, summed = cpu::group_inputs(bits) / 32;
      std::vector<std::int32_t> sums(static_cast<std::size_t>(some * num_sums));
      for (std::int64_t m = 0; m < some; ++m) {
        const auto* row = x.const_data_ptr<float>() + (first + m) * inputs;
        const bool leaves_rest = m % 2 == 0;
        kernels.quantize_row(row, inputs, bytes.data() + m * inputs, sizes.data() + m * groups,
                             sums.data() + m * num_sums,
                             leaves_rest ? rest.data() + (first + m) * inputs : nullptr);
      }
      for (std::int64_t k = 0; k < inputs; k += 4)
        for (std::int64_t m = 0; m < some; ++m)
          for (int i = 0; i < 4; ++i) values.push_back(bytes[m * inputs + k + i]);
      for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t m = 0; m < some; ++m) scales.push_back(sizes[m * groups + g]);
      for (std::int64_t s = 0; s < num_sums; s += summed)
        for (std::int64_t m = 0; m < some; ++m) {
          const auto* at = sums.data() + m * num_sums + s;
          starts.push_back((bits == 8 ? -128 : -8) * std::accumulate(at, at + summed, 0));
        }
      first += some;
    }
  }
  cpu::ByteRows rows() const { return {values.data(), scales.data(), starts.data(), inputs}; }

  std::int64_t inputs;
  std::vector<float> rest;
  std::vector<std::int8_t> values;
  std::vector<float> scales;
  std::vector<std::int32_t> starts;
};

class Fast : public testing::Test {
 protected:
  void SetUp() override {
    torch::manual_seed(5);
    if (!cpu::avx512_kernels()) GTEST_SKIP() << "this CPU has no AVX512-BF16";
  }
  const cpu::Kernels& plain() { return cpu::plain_kernels(); }
  const cpu::Kernels& fast() { return *cpu::avx512_kernels(); }
};

TEST_F(Fast, ByteProductsAndPackingAreThePlainOnes) {
  const std::int64_t K = 640, rows = 13, outputs = 50;  // tiles of 6, 6 and 1 rows
  const auto weight = random({outputs, K}), x = random({rows, K});
  for (const bool is_int8 : {true, false}) {
    const int bits = is_int8 ? 8 : 4;
    std::vector<std::uint8_t> blocks[2];
    std::vector<float> results[2], rests[2];
    for (int i = 0; i < 2; ++i) {
      const auto& kernels = i == 0 ? plain() : fast();
      blocks[i].resize(
          static_cast<std::size_t>(K / cpu::group_inputs(bits) * cpu::group_bytes(bits)));
      (is_int8 ? kernels.pack_int8 : kernels.pack_int4)(weight.const_data_ptr<float>(), K, outputs,
                                                        K, blocks[i].data());
      const Tiles tiles(kernels, x, bits);
      rests[i] = tiles.rest;
      results[i].resize(static_cast<std::size_t>(rows * cpu::kBlock));
      (is_int8 ? kernels.multiply_int8 : kernels.multiply_int4)(
          tiles.rows(), rows, blocks[i].data(), K, results[i].data());
    }
    EXPECT_EQ(blocks[0], blocks[1]);
    EXPECT_EQ(rests[0], rests[1]);
    for (std::size_t i = 0; i < results[0].size(); ++i)
      EXPECT_NEAR(results[0][i], results[1][i], 1e-4 * (1 + std::abs(results[0][i])));
  }
}

TEST_F(Fast, WhatIsDoneWithProductsHasTheBitsOfOperationsOfTheirOwn) {
  torch::NoGradGuard no_grad;
  for (const auto packing : {Packing::bfloat16, Packing::int8, Packing::int4})
    for (const std::int64_t rows : {1, 5, 100}) {
      const auto x = random({rows, 160}, torch::kBFloat16);
      const PackedWeight gate(random({200, 160}), packing), up(random({200, 160}), packing);
      const auto bias = random({200}, torch::kBFloat16),
                 residual = random({rows, 200}, torch::kBFloat16);
      const auto both = multiply(x, {&gate, &up}, {bias, Tensor()});
      EXPECT_TRUE(torch::equal(multiply_gated(x, gate, bias, up, {}), swiglu(both[0], both[1])));
      EXPECT_TRUE(torch::equal(multiply_and_add(x, gate, bias, residual), residual + both[0]));
    }
}

TEST_F(Fast, RowFunctionsAreLibTorchs) {
  const std::int64_t n = 150;  // not a whole number of vectors
  const auto x = random({n}, torch::kBFloat16), y = random({n}, torch::kBFloat16);
  std::vector<std::uint16_t> found(n), other(n);
  const auto near = [&](const Tensor& expected) {
    EXPECT_TRUE(torch::allclose(tensor_of(found).to(torch::kFloat32), expected.to(torch::kFloat32),
                                0.008, 1e-6));
    EXPECT_TRUE(torch::allclose(tensor_of(other).to(torch::kFloat32), expected.to(torch::kFloat32),
                                0.008, 1e-6));
  };
  fast().swiglu(bits(x).data(), bits(y).data(), n, found.data());
  plain().swiglu(bits(x).data(), bits(y).data(), n, other.data());
  near(torch::silu(x) * y);
  fast().quick_gelu(bits(x).data(), n, found.data());
  plain().quick_gelu(bits(x).data(), n, other.data());
  near(x * torch::sigmoid(1.702 * x));
  fast().rms_norm(bits(x).data(), bits(y).data(), n, 1e-5F, found.data());
  plain().rms_norm(bits(x).data(), bits(y).data(), n, 1e-5F, other.data());
  const auto wide = x.to(torch::kFloat32);
  near(y * (wide * (wide.square().mean() + 1e-5).rsqrt()).to(torch::kBFloat16));
  const auto half = n / 2;
  const auto cos = random({half}, torch::kBFloat16), sin = random({half}, torch::kBFloat16);
  fast().rotate(bits(x).data(), bits(cos).data(), bits(sin).data(), half, found.data());
  plain().rotate(bits(x).data(), bits(cos).data(), bits(sin).data(), half, other.data());
  EXPECT_EQ(found, other);
  near(torch::cat({x.slice(0, 0, half) * cos - x.slice(0, half) * sin,
                   x.slice(0, half) * cos + x.slice(0, 0, half) * sin}));
}

TEST_F(Fast, AttentionIsLibTorchsInFloat64) {
  torch::NoGradGuard no_grad;
  struct Case {
    std::int64_t heads, kv_heads, size, first, length;
  };
  for (const auto& [H, K, E, first, T] : {Case{4, 4, 64, 0, 130},
                                          {4, 2, 64, 0, 49},
                                          {6, 3, 80, 70, 13},
                                          {2, 1, 128, 200, 1},
                                          {2, 2, 32, 0, 1},
                                          {8, 2, 16, 5, 1}}) {
    const auto L = first + T;
    KvCache cache(1, K, E, L, torch::TensorOptions(torch::kBFloat16));
    const auto q = random({L, H, E}, torch::kBFloat16), k = random({L, K, E}, torch::kBFloat16),
               v = random({L, K, E}, torch::kBFloat16);
    if (first > 0) {
      cache.append(0, k.slice(0, 0, first).transpose(0, 1), v.slice(0, 0, first).transpose(0, 1));
      cache.advance(first);
    }
    const auto fast = attention(q.slice(0, first), k.slice(0, first), v.slice(0, first),
                                Rows({0, T}, {&cache}, torch::kCPU), 0);
    const auto wide = [](const Tensor& x) { return x.to(torch::kFloat64); };
    const auto exact = attention(wide(q), wide(k), wide(v), Rows({0, L}, {}, torch::kCPU), 0);
    EXPECT_LT(relative_error(fast, exact.slice(0, first)), 0.006) << H << " " << E << " " << T;
    if (first > 0) continue;
    const auto seen = full_attention(q.transpose(0, 1).unsqueeze(0),
                                     k.repeat_interleave(H / K, 1).transpose(0, 1).unsqueeze(0),
                                     v.repeat_interleave(H / K, 1).transpose(0, 1).unsqueeze(0));
    const auto all =
        full_attention(wide(q.transpose(0, 1).unsqueeze(0)),
                       wide(k.repeat_interleave(H / K, 1).transpose(0, 1).unsqueeze(0)),
                       wide(v.repeat_interleave(H / K, 1).transpose(0, 1).unsqueeze(0)));
    EXPECT_LT(relative_error(seen, all), 0.006);
  }
}

}  // namespace
}  // namespace llava::nn
