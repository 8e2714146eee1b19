#include "llava/nn/attention.h"

#include "llava/base/check.h"

#include "cpu_attention.h"
#include "cpu_flash.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace llava::nn {
namespace {

using torch::Tensor;

constexpr std::int64_t kFlashHeadSize = 256;  // largest head of the CUDA kernel

Tensor scaled_dot_product(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask,
                          bool is_causal) {
  const bool is_grouped = q.size(1) != k.size(1);
  return at::scaled_dot_product_attention(
      q, k, v, mask.defined() ? std::optional<Tensor>(mask) : std::nullopt, /*dropout_p=*/0.0,
      is_causal, /*scale=*/std::nullopt, is_grouped);
}

/// A row on its own: q [H, L, E], k and v [K, L, E] -> [H, L, E].
Tensor causal(const Tensor& q, const Tensor& k, const Tensor& v) {
  return scaled_dot_product(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), {}, true).squeeze(0);
}

/// One token against all that is kept: q [H, 1, E], k and v [K, L, E] -> [H, 1, E]. Plain products:
/// measured with LibTorch 2.11 on a CPU, half to a third of the fused call's time.
Tensor one_token(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto K = k.size(0), E = k.size(2), groups = q.size(0) / K;
  const auto grouped = q.reshape({K, groups, E});
  const auto scores = torch::matmul(grouped, k.transpose(1, 2));  // [K, groups, L]
  const double scale = 1.0 / std::sqrt(static_cast<double>(E));
  const auto wide = q.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto weights = torch::softmax(scores.to(wide) * scale, -1).to(q.scalar_type());
  return torch::matmul(weights, v).view({q.size(0), 1, E});
}

/// A row that goes on: q [H, T, E] against keys and values [K, L, E], the last T of them its own.
Tensor continued(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
  if (q.size(1) == 1) return one_token(q, k, v);
  return scaled_dot_product(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), mask, false).squeeze(0);
}

/// One row's part of q [T, H, E], k and v [T, K, E] by our own kernels: [T of the row, H, E].
Tensor cpu_row(const Tensor& q, const Tensor& k, const Tensor& v, const Rows& rows,
               std::int64_t row, std::int64_t layer) {
  const auto row_of = [&](const Tensor& x) {
    return x.slice(0, rows.starts[row], rows.starts[row + 1]);
  };
  const auto first = rows.first[row];
  auto keys = row_of(k), values = row_of(v);  // [L, K, E]
  if (!rows.caches.empty()) {
    const auto [all_keys, all_values] =
        rows.caches[row]->append(layer, keys.transpose(0, 1), values.transpose(0, 1));
    if (rows.length(row) == 1)
      return cpu_attention_of_one(row_of(q)[0], all_keys, all_values).unsqueeze(0);
    keys = all_keys.transpose(0, 1);
    values = all_values.transpose(0, 1);
  }
  return cpu_attention(row_of(q).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), first,
                       /*is_causal=*/true)
      .squeeze(0);
}

/// Sequences q, k, v [N, H, P, E] as rows of one flat batch -> [N, H, P, E].
Tensor flat_full_attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto N = q.size(0), P = q.size(2);
  std::vector<std::int64_t> starts;
  for (std::int64_t n = 0; n <= N; ++n) starts.push_back(n * P);
  const auto flat = [](const Tensor& x) { return x.transpose(1, 2).flatten(0, 1); };
  return cpu_flash(flat(q), flat(k), flat(v), starts, /*is_causal=*/false)
      .unflatten(0, {N, P})
      .transpose(1, 2);
}

/// One token of each row at a position that only the device knows: q [B, H, E], k and v [B, K, E].
Tensor at_positions(const Tensor& q, const Tensor& k, const Tensor& v, const Rows& rows,
                    std::int64_t layer) {
  const auto K = k.size(1), E = k.size(2), groups = q.size(1) / K;
  const double scale = 1.0 / std::sqrt(static_cast<double>(E));
  const auto wide = q.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  std::vector<Tensor> outputs;  // [H, E]
  for (std::int64_t row = 0; row < rows.size(); ++row) {
    const auto& cache = *rows.caches[row];
    const auto position = rows.positions.narrow(0, row, 1);
    const auto end = std::min(rows.seen.size(1), cache.capacity());
    const auto kept = [&](const Tensor& all, const Tensor& own) {  // [K, end, E]
      return all.index_copy_(1, position, own[row].unsqueeze(1)).narrow(1, 0, end);
    };
    const auto keys = kept(cache.keys(layer), k), values = kept(cache.values(layer), v);
    const auto scores = torch::matmul(q[row].view({K, groups, E}), keys.transpose(1, 2));
    const auto hidden = rows.seen[row].narrow(0, 0, end).logical_not();
    const auto weights = torch::softmax(
        (scores.to(wide) * scale).masked_fill(hidden, -std::numeric_limits<double>::infinity()),
        -1);
    outputs.push_back(torch::matmul(weights.to(q.scalar_type()), values).view({-1, E}));
  }
  return torch::stack(outputs);
}

}  // namespace

Rows::Rows(const torch::Tensor& positions_, const std::vector<KvCache*>& caches_,
           std::int64_t window)
    : caches(caches_), longest(1), positions(positions_) {
  const auto B = positions.size(0);
  for (std::int64_t row = 0; row <= B; ++row) starts.push_back(row);
  expect(static_cast<std::int64_t>(caches.size()) == B, Fault::usage, "a batch of ", B,
         " rows came with ", caches.size(), " caches");
  seen = torch::arange(window, positions.options()).unsqueeze(0) <= positions.unsqueeze(1);
}

Rows::Rows(const std::vector<std::int64_t>& starts_, const std::vector<KvCache*>& caches_,
           torch::Device device)
    : starts(starts_), caches(caches_) {
  expect(starts.size() >= 2 && starts[0] == 0, Fault::usage,
         "a batch needs at least one row, beginning at 0");
  expect(caches.empty() || static_cast<std::int64_t>(caches.size()) == size(), Fault::usage,
         "a batch of ", size(), " rows came with ", caches.size(), " caches");
  first.assign(size(), 0);
  masks.resize(size());
  for (std::int64_t row = 0; row < size(); ++row) {
    expect(length(row) > 0, Fault::usage, "row ", row, " of the batch has no tokens");
    longest = std::max(longest, length(row));
    if (caches.empty()) continue;
    first[row] = caches[row]->length();
    expect(first[row] + length(row) <= caches[row]->capacity(), Fault::capacity, "row ", row,
           " would have ", first[row] + length(row), " tokens but its cache holds ",
           caches[row]->capacity(), "; raise the context size or shorten the conversation");
    if (first[row] > 0 && length(row) > 1)
      masks[row] = torch::ones({length(row), first[row] + length(row)},
                               torch::TensorOptions(torch::kBool).device(device))
                       .tril(first[row]);
  }
  if (device.is_cuda() && caches.empty())
    bounds = torch::tensor(starts, torch::kInt64).to(torch::kInt32).to(device);
}

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const Rows& rows, std::int64_t layer) {
  if (rows.positions.defined()) return at_positions(q, k, v, rows, layer);
  const bool is_half = q.scalar_type() == torch::kBFloat16 || q.scalar_type() == torch::kFloat16;
  if (rows.bounds.defined() && is_half && q.size(2) <= kFlashHeadSize) {
    const std::optional<Tensor> bounds(rows.bounds);
    return std::get<0>(at::_flash_attention_forward(q, k, v, bounds, bounds, rows.longest,
                                                    rows.longest, /*dropout_p=*/0.0,
                                                    /*is_causal=*/true,
                                                    /*return_debug_mask=*/false));
  }

  if (rows.caches.empty() && has_cpu_flash(q, k))
    return cpu_flash(q, k, v, rows.starts, /*is_causal=*/true);

  std::vector<Tensor> outputs;  // [T of the row, H, E]
  for (std::int64_t row = 0; row < rows.size(); ++row) {
    if (has_cpu_attention(q)) {
      outputs.push_back(cpu_row(q, k, v, rows, row, layer));
      continue;
    }
    const auto row_of = [&](const Tensor& x) {  // [T, heads, E] -> [heads, T of the row, E]
      return x.slice(0, rows.starts[row], rows.starts[row + 1]).transpose(0, 1);
    };
    Tensor output;
    if (rows.caches.empty()) {
      output = causal(row_of(q), row_of(k), row_of(v));
    } else {
      const auto [keys, values] = rows.caches[row]->append(layer, row_of(k), row_of(v));
      output = rows.first[row] == 0 && rows.length(row) > 1
                   ? causal(row_of(q), row_of(k), row_of(v))
                   : continued(row_of(q), keys, values, rows.masks[row]);
    }
    outputs.push_back(output.transpose(0, 1));
  }
  return outputs.size() == 1 ? outputs[0] : torch::cat(outputs);
}

torch::Tensor full_attention(const torch::Tensor& q, const torch::Tensor& k,
                             const torch::Tensor& v) {
  if (has_cpu_attention(q))
    return cpu_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), /*first=*/0,
                         /*is_causal=*/false)
        .transpose(1, 2);
  if (has_cpu_flash(q, k)) return flat_full_attention(q, k, v);
  return scaled_dot_product(q, k, v, {}, false);
}

}  // namespace llava::nn
