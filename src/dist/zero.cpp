// Every bucket of weights is one flat tensor of which rank r owns part r.
//   stage 1  gradients add up in a flat tensor of their own, which is reduce-scattered once a step
//   stage 2  that tensor lives only while backward fills it; the parts of all micro-steps add up
//   stage 3  so does the flat tensor of a layer's weights, gathered just before the layer runs
// The optimizer works on the pieces of parameters in this rank's parts. After it, the parts are
// gathered again; in stage 3 a layer's next use does that.
#include "zero.h"

#include "buckets.h"
#include "llava/base/check.h"

#include <algorithm>
#include <deque>
#include <map>

namespace llava::dist {
namespace {

constexpr std::size_t kInFlight =
    2;  // buckets of gradients on their way, besides those being filled

/// Weights of a bucket, and this rank's part of their gradients.
struct Part {
  torch::Tensor full;    // [size]; its storage may be empty in stage 3
  torch::Tensor own;     // [size / world]
  bool sharded = false;  // `full` is there only while gathered
  bool gathered = true;
  Exchange gathering;
  torch::Tensor own_gradients;  // [size / world], of the step so far
  Exchange reducing;
  torch::Tensor arriving;  // where a reduction ends before it is added to own_gradients
};

/// A piece of a parameter that this rank's optimizer updates.
struct Piece {
  std::size_t bucket = 0;
  std::int64_t begin = 0, size = 0;  // in the rank's part
  torch::Tensor values;              // a view of the part, or its copy on the CPU
};

void drop_storage(const torch::Tensor& tensor) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(0));
  storage->set_nbytes(std::size_t{0});
}

void make_storage(const torch::Tensor& tensor) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  const auto bytes = static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
  storage->set_nbytes(bytes);
}

class Zero : public GradientSync {
 public:
  Zero(const SyncConfig& config, const ProcessGroup& group, const Weights& weights);

  void backward(const torch::Tensor& loss, bool last_micro_step) override;
  std::vector<NamedTensors> owned(const std::vector<NamedTensors>& groups) override;
  torch::Tensor total_norm(const torch::Tensor& owned_norm) override;
  void publish() override;
  void before_layer(std::int64_t layer, const torch::Tensor& hidden) override;
  void after_layer(std::int64_t layer, const torch::Tensor& hidden) override;
  void gather_on_host() override;
  HeldBytes held_bytes() const override;

 private:
  void take_over(std::size_t bucket);
  void write_program();
  void reduce(std::size_t bucket);
  void finish_reduce(std::size_t bucket);
  void hand_out_gradients();
  void gather(std::int64_t layer);
  void wait_gathered(std::int64_t layer);
  void free(std::int64_t layer);
  void layer_backward(std::int64_t layer);
  std::int64_t part_size(std::size_t bucket) const { return buckets_[bucket].size / world_; }

  SyncConfig config_;
  const ProcessGroup& group_;
  std::int64_t rank_, world_, num_layers_ = 0;
  std::vector<Bucket> buckets_;
  std::vector<Part> parts_;
  std::vector<std::vector<std::size_t>> layer_buckets_;                       // [layer]; stage 3
  std::map<std::string, std::vector<std::pair<std::string, Piece>>> pieces_;  // by parameter
  std::deque<std::size_t> reducing_;                                          // oldest first
  Program program_;                                                           // of a backward
  std::vector<std::size_t> reduce_step_, gather_step_;  // of a bucket, of a layer
  bool exchanges_now_ = false;
  std::unique_ptr<Collector> collector_;
};

Zero::Zero(const SyncConfig& config, const ProcessGroup& group, const Weights& weights)
    : config_(config), group_(group), rank_(group.rank()), world_(group.world_size()) {
  Weights grouped{weights.parameters, {}};  // buckets need not end where layers do
  if (config.zero == 3) grouped.layers = weights.layers;
  buckets_ = make_buckets(grouped, bucket_bytes(config, world_), world_, config.zero == 3);
  // Frozen weights outside of layers stay whole on every rank.
  std::erase_if(buckets_, [](const Bucket& bucket) { return !bucket.learns && bucket.layer < 0; });
  for (const auto layer : grouped.layers) num_layers_ = std::max(num_layers_, layer + 1);
  layer_buckets_.resize(static_cast<std::size_t>(num_layers_));
  parts_.resize(buckets_.size());
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < buckets_.size(); ++i) take_over(i);
  write_program();
  std::optional<torch::ScalarType> dtype;
  if (config.grad_dtype == "float32") dtype = torch::kFloat32;
  collector_ = std::make_unique<Collector>(buckets_, dtype, /*keeps_gradients=*/false,
                                           [this](std::size_t bucket) {
                                             if (exchanges_now_)
                                               program_.ready(reduce_step_[bucket]);
                                           });
}

/// Lays a bucket's weights into one flat tensor, and finds this rank's pieces of it.
void Zero::take_over(std::size_t index) {
  Bucket& bucket = buckets_[index];
  Part& part = parts_[index];
  part.full = torch::zeros({bucket.size}, bucket.options());
  for (auto& slot : bucket.slots) {
    const auto place = slot.view(part.full);
    place.copy_(slot.parameter);
    slot.parameter.set_data(place);
  }
  const auto begin = rank_ * part_size(index), end = begin + part_size(index);
  part.own = part.full.narrow(0, begin, part_size(index));
  part.sharded = bucket.layer >= 0;
  if (part.sharded) {
    part.own = part.own.clone();
    drop_storage(part.full);
    part.gathered = false;
    layer_buckets_[static_cast<std::size_t>(bucket.layer)].push_back(index);
  }
  if (!bucket.learns) return;
  for (const auto& slot : bucket.slots) {
    auto& pieces = pieces_[slot.name];
    const auto from = std::max(slot.begin, begin), to = std::min(slot.begin + slot.size, end);
    if (from >= to) continue;
    const bool whole = to - from == slot.size;
    Piece piece{index, from - begin, to - from, part.own.narrow(0, from - begin, to - from)};
    if (whole) piece.values = piece.values.view(slot.parameter.sizes());
    if (config_.zero_offload_optimizer) piece.values = piece.values.to(torch::kCPU, false, true);
    const auto range =
        "[" + std::to_string(from - slot.begin) + ":" + std::to_string(to - slot.begin) + "]";
    pieces.emplace_back(whole ? slot.name : slot.name + range, piece);
  }
}

// ── Gradients ───────────────────────────────────────────────────────────────────────────────────

/// The collectives of a backward: a layer's gradients are reduced while the next but one is
/// gathered, so that every rank has them in the same order even if it skips some layers.
void Zero::write_program() {
  reduce_step_.resize(buckets_.size());
  gather_step_.resize(static_cast<std::size_t>(num_layers_));
  const auto add_reduce = [&](std::size_t bucket) {
    if (buckets_[bucket].learns)
      reduce_step_[bucket] = program_.add([this, bucket] { reduce(bucket); });
  };
  const auto add_gather = [&](std::int64_t layer) {
    if (layer >= 0)
      gather_step_[static_cast<std::size_t>(layer)] =
          program_.add([this, layer] { gather(layer); });
  };
  // Buckets are in the order of backward: those before the first of a layer belong to the head.
  std::size_t bucket = 0;
  while (bucket < buckets_.size() && buckets_[bucket].layer < 0) add_reduce(bucket++);
  add_gather(num_layers_ - 2);  // the last layer is still there
  for (auto layer = num_layers_ - 1; layer >= 0; --layer) {
    for (const auto of_layer : layer_buckets_[static_cast<std::size_t>(layer)])
      add_reduce(of_layer);
    add_gather(layer - 2);
  }
  for (; bucket < buckets_.size(); ++bucket)
    if (buckets_[bucket].layer < 0) add_reduce(bucket);
}

void Zero::backward(const torch::Tensor& loss, bool last_micro_step) {
  exchanges_now_ = last_micro_step || config_.zero > 1;
  collector_->begin_backward();
  program_.begin();
  loss.backward();
  if (!exchanges_now_) return;
  program_.finish();
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) free(layer);
  while (!reducing_.empty()) {
    finish_reduce(reducing_.front());
    reducing_.pop_front();
  }
  if (last_micro_step) hand_out_gradients();
}

void Zero::reduce(std::size_t index) {
  torch::NoGradGuard no_grad;
  if (reducing_.size() >= kInFlight) {
    finish_reduce(reducing_.front());
    reducing_.pop_front();
  }
  collector_->close(index);
  Bucket& bucket = buckets_[index];
  Part& part = parts_[index];
  auto flat = bucket.gradients;
  if (config_.grad_compression && flat.scalar_type() == torch::kFloat32)
    flat = flat.to(torch::kBFloat16);
  part.arriving = flat.narrow(0, rank_ * part_size(index), part_size(index));
  part.reducing = group_.reduce_scatter(part.arriving, flat, "gradients of " + bucket.name());
  reducing_.push_back(index);
}

void Zero::finish_reduce(std::size_t index) {
  torch::NoGradGuard no_grad;
  Part& part = parts_[index];
  auto& gradients = buckets_[index].gradients;
  part.reducing.wait();
  const auto type = gradients.scalar_type();
  if (part.own_gradients.defined()) {
    part.own_gradients.add_(part.arriving);
  } else if (config_.zero == 1) {
    part.own_gradients = part.arriving.to(type);  // the flat tensor lives as long as they do
  } else {
    part.own_gradients = part.arriving.to(type, /*non_blocking=*/false, /*copy=*/true);
  }
  part.arriving.reset();
  if (config_.zero > 1) gradients.reset();
}

/// The optimizer's pieces get their gradients.
void Zero::hand_out_gradients() {
  for (auto& [name, pieces] : pieces_) {
    for (auto& [piece_name, piece] : pieces) {
      auto gradient = parts_[piece.bucket].own_gradients.narrow(0, piece.begin, piece.size);
      gradient = gradient.view(piece.values.sizes());
      if (config_.zero_offload_optimizer) gradient = gradient.to(torch::kCPU);
      piece.values.mutable_grad() = gradient;
    }
  }
}

// ── The optimizer's side ────────────────────────────────────────────────────────────────────────

std::vector<NamedTensors> Zero::owned(const std::vector<NamedTensors>& groups) {
  std::vector<NamedTensors> owned(groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    for (const auto& [name, parameter] : groups[i]) {
      const auto found = pieces_.find(name);
      expect(found != pieces_.end(), Fault::failure, name,
             " learns but was frozen when the weights were shared out");
      for (const auto& [piece_name, piece] : found->second)
        owned[i].emplace_back(piece_name, piece.values);
    }
  }
  return owned;
}

torch::Tensor Zero::total_norm(const torch::Tensor& owned_norm) {
  return group_.sum(owned_norm.square(), "norm of the gradient").sqrt();
}

void Zero::publish() {
  torch::NoGradGuard no_grad;
  for (auto& [name, pieces] : pieces_) {
    for (auto& [piece_name, piece] : pieces) {
      piece.values.mutable_grad().reset();
      if (config_.zero_offload_optimizer)
        parts_[piece.bucket]
            .own.narrow(0, piece.begin, piece.size)
            .copy_(piece.values.view(-1), /*non_blocking=*/true);
    }
  }
  for (std::size_t i = buckets_.size(); i-- > 0;) {  // in the order in which forward needs them
    buckets_[i].gradients.reset();
    parts_[i].own_gradients.reset();
    if (buckets_[i].learns && !parts_[i].sharded)
      parts_[i].gathering =
          group_.all_gather(parts_[i].full, parts_[i].own, "weights of " + buckets_[i].name());
  }
  for (auto& part : parts_) part.gathering.wait();
}

// ── Weights of layers, in stage 3 ───────────────────────────────────────────────────────────────
// A tensor that autograd saved in forward shares its storage with the layer's flat tensor, so
// filling that again brings the saved ones back as well. The last layer stays gathered between
// forward and backward, which needs it first.

void Zero::gather(std::int64_t layer) {
  torch::NoGradGuard no_grad;
  for (const auto index : layer_buckets_[static_cast<std::size_t>(layer)]) {
    Part& part = parts_[index];
    if (std::exchange(part.gathered, true)) continue;
    make_storage(part.full);
    part.gathering = group_.all_gather(part.full, part.own, "weights of " + buckets_[index].name());
  }
}

void Zero::wait_gathered(std::int64_t layer) {
  for (const auto index : layer_buckets_[static_cast<std::size_t>(layer)])
    parts_[index].gathering.wait();
}

void Zero::free(std::int64_t layer) {
  for (const auto index : layer_buckets_[static_cast<std::size_t>(layer)]) {
    Part& part = parts_[index];
    if (!std::exchange(part.gathered, false)) continue;
    part.gathering.wait();
    drop_storage(part.full);
  }
}

void Zero::before_layer(std::int64_t layer, const torch::Tensor& /*hidden*/) {
  if (config_.zero < 3) return;
  gather(layer);
  if (layer + 1 < num_layers_) gather(layer + 1);
  wait_gathered(layer);
}

void Zero::after_layer(std::int64_t layer, const torch::Tensor& hidden) {
  if (config_.zero < 3) return;
  const bool backward_follows = torch::GradMode::is_enabled();
  if (!backward_follows || layer + 1 < num_layers_) free(layer);
  if (backward_follows && hidden.requires_grad())
    hidden.register_hook([this, layer](const torch::Tensor&) { layer_backward(layer); });
}

/// Backward has come to the end of `layer`.
void Zero::layer_backward(std::int64_t layer) {
  if (layer + 1 < num_layers_) {
    free(layer + 1);
    program_.issue_through(gather_step_[static_cast<std::size_t>(layer)]);
  }
  if (layer > 0) program_.ready(gather_step_[static_cast<std::size_t>(layer - 1)]);
  wait_gathered(layer);
}

void Zero::gather_on_host() {
  torch::NoGradGuard no_grad;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    gather(layer);
    wait_gathered(layer);
    for (const auto index : layer_buckets_[static_cast<std::size_t>(layer)]) {
      if (rank_ == 0) {
        const auto host = parts_[index].full.to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true);
        for (auto& slot : buckets_[index].slots) slot.parameter.set_data(slot.view(host));
      }
    }
    free(layer);
  }
}

HeldBytes Zero::held_bytes() const {
  HeldBytes held;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    const auto& bucket = buckets_[i];
    const auto& part = parts_[i];
    const auto width = static_cast<std::int64_t>(part.own.element_size());
    held.weights += (part.sharded ? part_size(i) : bucket.size) * width;
    if (!bucket.learns) continue;
    const auto gradient_width = config_.grad_dtype == "float32" ? 4 : width;
    held.gradients += (config_.zero == 1 ? bucket.size : part_size(i)) * gradient_width;
    if (config_.zero > 1) held.buffers = std::max(held.buffers, bucket.size * gradient_width);
  }
  held.buffers *= static_cast<std::int64_t>(kInFlight) + 1;
  std::int64_t layer_bytes = 0;
  for (const auto& indices : layer_buckets_) {
    std::int64_t bytes = 0;
    for (const auto index : indices)
      bytes += buckets_[index].size * static_cast<std::int64_t>(parts_[index].own.element_size());
    layer_bytes = std::max(layer_bytes, bytes);
  }
  held.buffers += 2 * layer_bytes;  // the layer in use and the next
  return held;
}

}  // namespace

std::unique_ptr<GradientSync> make_zero(const SyncConfig& config, const ProcessGroup& group,
                                        const Weights& weights) {
  expect(config.zero < 3 || !weights.layers.empty(), Fault::failure,
         "zero 3 needs to know the layers");
  return std::make_unique<Zero>(config, group, weights);
}

}  // namespace llava::dist
