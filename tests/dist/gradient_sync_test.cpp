#include "llava/dist/gradient_sync.h"

#include "little_model.h"
#include "llava/base/check.h"
#include "support/expect_error.h"
#include "support/ranks.h"

#include <torch/version.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <chrono>
#include <cstdio>
#include <sstream>
#include <thread>

namespace llava::dist {
namespace {

using support::run_ranks;
using ::testing::HasSubstr;
using testing::LittleModel;
using testing::Training;

/// Trains several times over, as LLAVA_TEST_RUNS says: "zero=1,accumulation=2 zero=2"; prints the
/// weights after each.
TEST(Rank, DISABLED_Trains) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    std::istringstream runs(support::text("LLAVA_TEST_RUNS"));
    for (std::string run; runs >> run;) {
      Training training;
      std::istringstream settings(run);
      for (std::string setting; std::getline(settings, setting, ',');) {
        const auto equals = setting.find('=');
        const auto name = setting.substr(0, equals), value = setting.substr(equals + 1);
        if (name == "zero") training.sync.zero = std::stoll(value);
        if (name == "compress") training.sync.grad_compression = true;
        if (name == "offload") training.sync.zero_offload_optimizer = true;
        if (name == "float32") training.sync.grad_dtype = "float32";
        if (name == "accumulation") training.accumulation = std::stoll(value);
        if (name == "recompute") training.recompute = true;
        if (name == "frozen") training.layers_learn = false;
      }
      const auto weights = testing::train(group, training);
      if (group.rank() > 0) continue;
      const auto* value = weights.const_data_ptr<double>();
      for (std::int64_t i = 0; i < weights.numel(); ++i) std::printf(" %.17g", value[i]);
      std::printf("\n");
    }
    return 0;
  });
}

/// Rank 0's weights after each of the runs.
std::vector<torch::Tensor> weights_after(int ranks, const std::string& runs) {
  const auto outcomes =
      run_ranks({.scenario = "Trains",
                 .ranks = ranks,
                 .environment = {{"LLAVA_TEST_RUNS", runs}, {"LLAVA_TEST_CHECK_STEPS", "1"}}});
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.code, 0) << outcome.err;
  std::vector<torch::Tensor> weights;
  std::istringstream lines(outcomes[0].out);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] != ' ') continue;  // what the test program itself prints
    std::istringstream numbers(line);
    std::vector<double> values;
    for (double value; numbers >> value;) values.push_back(value);
    weights.push_back(torch::tensor(values, torch::kFloat64));
  }
  return weights;
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.sizes() != b.sizes()) return INFINITY;
  return (a - b).abs().max().item<double>();
}

// Sums of ranks and of rows are rounded in another order.
constexpr double kOtherOrder = 1e-5;
constexpr double kSameSums = 1e-6;

TEST(GradientSync, TrainingMovesTheWeights) {
  const ProcessGroup alone;
  const auto before = testing::train(alone, {.steps = 0}), after = testing::train(alone, {});
  EXPECT_GT(largest_difference(before, after), 0.05);
}

TEST(GradientSync, AccumulationAndRecomputationChangeNothing) {
  const ProcessGroup group;
  const auto plain = testing::train(group, {});
  for (const std::int64_t zero : {0, 1, 2, 3}) {
    Training training{.sync = {.zero = zero}, .accumulation = 4};
    EXPECT_LT(largest_difference(testing::train(group, training), plain), kOtherOrder) << zero;
    training = {.sync = {.zero = zero}, .recompute = true};
    EXPECT_LT(largest_difference(testing::train(group, training), plain), kSameSums) << zero;
  }
}

TEST(GradientSync, TwoRanksTrainAsOneWithEveryStrategy) {
  const ProcessGroup group;
  const auto alone = testing::train(group, {});
  const auto weights = weights_after(
      2,
      "zero=0 zero=1 zero=2 zero=3 zero=0,accumulation=2 zero=1,accumulation=2 "
      "zero=2,accumulation=2 zero=3,accumulation=2 zero=0,recompute zero=2,recompute "
      "zero=3,recompute zero=2,offload zero=3,offload,float32 zero=1,float32 zero=0 zero=3");
  ASSERT_EQ(weights.size(), 16U);
  for (std::size_t i = 0; i < weights.size(); ++i)
    EXPECT_LT(largest_difference(weights[i], alone), kOtherOrder) << i;
  for (const std::size_t zero : {1U, 2U, 3U})
    EXPECT_LT(largest_difference(weights[zero], weights[0]), kSameSums) << "ZeRO " << zero;
  EXPECT_TRUE(weights[14].equal(weights[0]) && weights[15].equal(weights[3])) << "not repeatable";
}

TEST(GradientSync, FourRanksTrainAsOne) {
  const ProcessGroup group;
  const auto alone = testing::train(group, {});
  const auto weights = weights_after(4, "zero=0 zero=1 zero=2 zero=3");
  ASSERT_EQ(weights.size(), 4U);
  for (const auto& each : weights) {
    EXPECT_LT(largest_difference(each, alone), kOtherOrder);
    EXPECT_LT(largest_difference(each, weights[0]), kSameSums);
  }
}

TEST(GradientSync, FrozenLayersAndRanksWithoutGradientKeepInStep) {
  const ProcessGroup group;
  // Rows 0 and 1, on rank 0, are the only ones that reach the projector.
  const auto alone = testing::train(group, {.layers_learn = false});
  const auto weights = weights_after(4, "zero=0,frozen zero=3,frozen zero=3,frozen,recompute");
  ASSERT_EQ(weights.size(), 3U);
  for (const auto& each : weights) EXPECT_LT(largest_difference(each, alone), kOtherOrder);
}

TEST(GradientSync, CompressedGradientsAreCloseButNotEqual) {
  const auto weights = weights_after(2, "zero=0 zero=0,compress zero=2,compress");
  ASSERT_EQ(weights.size(), 3U);
  for (const std::size_t i : {1U, 2U}) {
    EXPECT_LT(largest_difference(weights[i], weights[0]), 0.02);  // 2^-8 of 20 steps of 0.01
    EXPECT_GT(largest_difference(weights[i], weights[0]), 1e-6);
  }
}

// c10d's own DDP engine as an oracle: the average of its gradients times the ranks is our sum.
TEST(Rank, DISABLED_MatchesReducer) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    const auto world = group.world_size(), rank = group.rank();
    const auto share = testing::kRows / world;
    LittleModel ours(7), theirs(7);
    for (auto* model : {&ours, &theirs})  // every rank uses every parameter: the Reducer insists
      for (auto& [name, tensor] : model->parameters)
        if (name == "projector") tensor.requires_grad_(false);
    const auto sync = make_gradient_sync({}, group, ours.weights());
    sync->backward(ours.loss(0, rank * share, (rank + 1) * share), true);

    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(group.place().master_port);
    options.waitWorkers = false;
    const auto store = c10::make_intrusive<c10d::PrefixStore>(
        "oracle", c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options));
    auto gloo_options = c10d::ProcessGroupGloo::Options::create();
    gloo_options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    const auto process_group = c10::make_intrusive<c10d::ProcessGroup>(
        store, static_cast<int>(rank), static_cast<int>(world));
    process_group->setBackend(
        torch::kCPU, c10d::ProcessGroup::BackendType::GLOO,
        c10::make_intrusive<c10d::ProcessGroupGloo>(store, static_cast<int>(rank),
                                                    static_cast<int>(world), gloo_options));
    process_group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    std::vector<torch::Tensor> learning;
    for (const auto& [name, tensor] : theirs.parameters)
      if (tensor.requires_grad()) learning.push_back(tensor);
    auto [indices, caps] = c10d::compute_bucket_assignment_by_size(
        learning, {c10d::kDefaultFirstBucketBytes, c10d::kDefaultBucketBytesCap});
    std::reverse(indices.begin(), indices.end());
    c10d::Reducer reducer(learning, indices, process_group,
                          std::vector<bool>(learning.size(), false), c10d::kDefaultBucketBytesCap,
                          false, false, {}, c10d::kDefaultFirstBucketBytes, false, false
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11)
                          ,
                          {}
#endif
    );
    reducer.prepare_for_forward();
    const auto loss = theirs.loss(0, rank * share, (rank + 1) * share);
    reducer.prepare_for_backward({});
    loss.backward();
    for (std::size_t i = 0; i < ours.parameters.size(); ++i) {
      const auto& [name, parameter] = ours.parameters[i];
      if (!parameter.requires_grad()) continue;
      const auto oracle = theirs.parameters[i].second.grad() * static_cast<double>(world);
      const auto error = (parameter.grad() - oracle).abs().max().item<double>();
      const auto scale = oracle.abs().max().item<double>();
      expect(error <= 1e-6 * scale, Fault::verification, name, " differs by ", error, " of ",
             scale);
    }
    group.barrier("end");
    return 0;
  });
}

TEST(GradientSync, MatchesTheReducerOfLibTorch) {
  for (const auto& rank : run_ranks({.scenario = "MatchesReducer", .ranks = 2}))
    EXPECT_EQ(rank.code, 0) << rank.err;
}

// ── Bytes ───────────────────────────────────────────────────────────────────────────────────────

/// Per strategy: bytes sent in a step of three micro-steps, bytes held, values this rank owns.
TEST(Rank, DISABLED_Sends) {
  support::play([] {
    auto config = support::group_config();
    config.dist_check_steps = 0;
    const ProcessGroup group(config, place_from_environment());
    group.note(1);
    for (const std::int64_t zero : {0, 1, 2, 3}) {
      LittleModel model(7);
      const auto sync = make_gradient_sync({.zero = zero}, group, model.weights());
      model.sync = sync.get();
      NamedTensors learning;
      for (const auto& entry : model.parameters)
        if (entry.second.requires_grad()) learning.push_back(entry);
      const auto owned = sync->owned({learning});
      const auto before = group.traffic().bytes;
      for (int i = 0; i < 3; ++i) sync->backward(model.loss(0, 0, 1), i == 2);
      sync->publish();
      std::int64_t values = 0;
      for (const auto& [name, tensor] : owned[0]) values += tensor.numel();
      const auto held = sync->held_bytes();
      std::printf("\nsent %ld held %ld %ld owned %ld\n", group.traffic().bytes - before,
                  held.weights, held.gradients, values);
    }
    return 0;
  });
}

struct Measured {
  double sent = 0, weights = 0, gradients = 0;
  double owned = 0;  // of all ranks
};

/// By ZeRO stage.
std::vector<Measured> measure(int ranks) {
  std::vector<Measured> measured(4);
  for (const auto& outcome : run_ranks({.scenario = "Sends", .ranks = ranks})) {
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::istringstream lines(outcome.out);
    std::size_t stage = 0;
    for (std::string line; std::getline(lines, line);) {
      Measured one;
      if (std::sscanf(line.c_str(), "sent %lf held %lf %lf owned %lf", &one.sent, &one.weights,
                      &one.gradients, &one.owned) != 4)
        continue;
      one.owned += measured.at(stage).owned;
      measured[stage++] = one;  // but for what they own, all ranks say the same
    }
    EXPECT_EQ(stage, 4U);
  }
  return measured;
}

// Formulas: three micro-steps (a = 3), n ranks, S bytes of weights that learn; padding and the
// frozen weights that ZeRO 3 gathers as well are counted by hand.
TEST(GradientSync, SendsAndHoldsWhatTheFormulasSay) {
  const double rounded = 256;  // kAlignment
  const auto pad = [&](double values, double multiple) {
    return std::ceil(values / multiple) * multiple;
  };
  const double square = pad(24 * 24, rounded), bias = rounded, scale = rounded;
  const double rest32 =
      square + rounded + rounded + pad(24 * 1000, rounded);  // projector embed norm head
  const double layers32 = 4 * (square + bias), layers64 = 4 * scale;
  for (const int n : {2, 4}) {
    const double world = n, unit = rounded * world, part = (world - 1) / world;
    const double S = 4 * pad(rest32 + layers32, unit) + 8 * pad(layers64, unit);
    const auto measured = measure(n);
    const auto &ddp = measured[0], &one = measured[1], &two = measured[2], &three = measured[3];
    EXPECT_EQ(ddp.sent, 2 * S * part);
    EXPECT_EQ(ddp.gradients, S);
    EXPECT_EQ(one.sent, 2 * S * part);
    EXPECT_EQ(one.gradients, S);
    EXPECT_EQ(one.weights, S);
    EXPECT_EQ(two.sent, (3 + 1) * S * part);
    EXPECT_EQ(two.gradients, S / world);
    EXPECT_EQ(two.weights, S);
    // A layer: learned fp32, learned fp64, frozen fp32; the last is gathered once a micro-step.
    const double learned = 4 * pad(square + bias, unit) + 8 * pad(scale, unit);
    const double frozen = 4 * pad(square, unit);
    // The head and the norm travel before the layers, projector and embedding after them.
    const double rest =
        4 * (pad(rounded + pad(24 * 1000, rounded), unit) + pad(square + rounded, unit));
    const double gathers = 3 * (2 * testing::kLayers - 1) * (learned + frozen);
    EXPECT_EQ(three.sent, part * (gathers + 3 * testing::kLayers * learned + (3 + 1) * rest));
    EXPECT_EQ(three.gradients, (testing::kLayers * learned + rest) / world);
    EXPECT_EQ(three.weights, testing::kLayers * (learned + frozen) / world + rest);
    for (const auto& each : {one, two, three})  // every value has one owner
      EXPECT_EQ(each.owned, 24 * 24 + 7 * 24 + 24 + 24 * 1000 + 4 * (24 * 24 + 24 + 1));
  }
}

// ── Overlap ─────────────────────────────────────────────────────────────────────────────────────

/// y = w * x whose forward and backward take their time, as a large layer's do.
struct Slow : torch::autograd::Function<Slow> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    context->save_for_backward({x, weight});
    return x * weight;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    const auto saved = context->get_saved_variables();
    return {grads[0] * saved[1], grads[0] * saved[0]};
  }
};

TEST(Rank, DISABLED_Overlaps) {
  support::play([] {
    auto config = support::group_config();
    config.dist_check_steps = 0;
    config.dist_link_speed = 0.025;  // an all-reduce of 1 MiB by two ranks takes 42 ms
    const ProcessGroup group(config, place_from_environment());
    group.note(1);
    for (const std::int64_t zero : {0, 2, 3}) {
      Weights weights;
      constexpr std::int64_t layers = 12;
      for (std::int64_t i = 0; i < layers; ++i) {
        weights.parameters.emplace_back("layers." + std::to_string(i),
                                        torch::ones({1 << 18}, torch::requires_grad()));
        weights.layers.push_back(i);
      }
      const auto sync = make_gradient_sync({.zero = zero, .ddp_bucket_cap_mb = 1}, group, weights);
      const auto before = group.traffic();
      auto x = torch::ones({1 << 18}, torch::requires_grad());
      for (std::int64_t i = 0; i < layers; ++i) {
        sync->before_layer(i, x);
        x = Slow::apply(x, weights.parameters[static_cast<std::size_t>(i)].second);
        sync->after_layer(i, x);
      }
      sync->backward(x.sum(), true);
      const auto after = group.traffic();
      const double link = after.link_seconds - before.link_seconds;
      const double waited = after.waited_seconds - before.waited_seconds;
      std::printf("\nzero %ld hidden %.3f of %.3f s\n", zero, 1 - waited / link, link);
    }
    return 0;
  });
}

// Times are slept, not computed, so that a busy machine changes them little.
TEST(GradientSync, CommunicationHidesBehindBackward) {
  const auto outcomes = run_ranks({.scenario = "Overlaps", .ranks = 2});
  for (const auto& outcome : outcomes) {
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::istringstream lines(outcome.out);
    int found = 0;
    for (std::string line; std::getline(lines, line);) {
      double zero = 0, hidden = 0;
      if (std::sscanf(line.c_str(), "zero %lf hidden %lf", &zero, &hidden) != 2) continue;
      ++found;
      EXPECT_GE(hidden, 0.8) << line;
    }
    EXPECT_EQ(found, 3);
  }
}

TEST(GradientSync, NamesPieces) {
  EXPECT_EQ(split_piece("a.weight").parameter, "a.weight");
  EXPECT_EQ(split_piece("a.weight").end, -1);
  const auto piece = split_piece("a.weight[256:1024]");
  EXPECT_EQ(piece.parameter, "a.weight");
  EXPECT_EQ(piece.begin, 256);
  EXPECT_EQ(piece.end, 1024);
  for (const char* odd : {"a[", "a[]", "a[1]", "a[1:]", "a[:2]", "a[1:x]", "a[1:2]b"})
    EXPECT_EQ(split_piece(odd).parameter, odd);
}

TEST(SyncConfig, NonsenseIsRefused) {
  EXPECT_THAT(support::error_of(Fault::usage, [] { check(SyncConfig{.zero = 4}); }),
              HasSubstr("--zero is 4"));
  EXPECT_THAT(
      support::error_of(Fault::usage, [] { check(SyncConfig{.zero_offload_optimizer = true}); }),
      HasSubstr("need --zero"));
}

}  // namespace
}  // namespace llava::dist
