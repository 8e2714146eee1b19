#include "llava/model/llava.h"

#include "support/expect_error.h"
#include "support/tiny_model.h"

namespace llava {
namespace {

using torch::Tensor;

/// A row of text with `pictures` pictures in it.
input::Example example(const model::LlavaConfig& config, int number, int pictures) {
  input::Example example;
  example.id = "sample " + std::to_string(number);
  for (int i = 0; i < pictures; ++i) {
    input::Picture picture;
    picture.side = config.tiling.tile;
    picture.shape = media::tile_shape(28 + 10 * number, 28 + 30 * i, config.tiling);
    picture.rows = media::image_rows(picture.shape, config.merge);
    for (int p = 0; p < picture.tiles() * 3 * picture.side * picture.side; ++p)
      picture.pixels.push_back(static_cast<std::uint8_t>(p * (13 + number) + 91 * i));
    example.pictures.push_back(picture);
  }
  for (int i = 0; i < 6 + number; ++i) example.ids.push_back(3 + (7 * i + number) % 60);
  for (int i = 0; i < pictures; ++i) example.ids[1 + 2 * i] = input::kImageToken;
  example.labels = example.ids;
  for (int i = 0; i < 4; ++i) example.labels[i] = input::kIgnore;
  return example;
}

model::LlavaConfig anyres() {
  auto config = test::tiny_config();
  config.tiling.aspect = media::Aspect::anyres;
  config.tiling.pinpoints = {{28, 56}, {56, 28}, {56, 56}};
  config.merge.spatial = config.merge.unpad = config.has_newline = true;
  return config;
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(Llava, PixelsAreTheTablesNumbers) {
  auto model = test::tiny_model();
  auto tiles = torch::zeros({1, 3, 28, 28}, torch::kUInt8);
  tiles[0][1][0][0] = 255;
  tiles[0][2][27][27] = 7;
  const auto pixels = model->pixel_values(tiles);
  const auto table = media::normalization_table(model->config.tiling);
  EXPECT_EQ(pixels[0][0][0][0].item<float>(), table[0][0]);
  EXPECT_EQ(pixels[0][1][0][0].item<float>(), table[1][255]);
  EXPECT_EQ(pixels[0][2][27][27].item<float>(), table[2][7]);
  EXPECT_EQ(pixels.scalar_type(), torch::kFloat32);
}

TEST(Llava, SplicePutsRowsAndLabelsInPlace) {
  const torch::NoGradGuard no_grad;
  auto model = test::tiny_model();
  const auto batch = input::collate({example(model->config, 0, 2), example(model->config, 1, 0)});
  const auto spliced = model->embed(batch);
  EXPECT_EQ(spliced.starts, (std::vector<std::int64_t>{0, 6 + 2 * 3, 6 + 2 * 3 + 7}));
  EXPECT_EQ(spliced.embeds.size(0), spliced.starts.back());
  EXPECT_EQ(spliced.labels.size(0), spliced.starts.back());
  const auto word = [&](std::int64_t id) { return model->llama->embed_tokens->weight[id]; };
  EXPECT_TRUE(torch::equal(spliced.embeds[0], word(3)));
  EXPECT_TRUE(torch::equal(spliced.embeds[5], word(17)));  // after the first picture's 4 rows
  const auto features = model->image_features(
      model->vision_features(model->pixel_values(batch.tiles)), batch.pictures);
  EXPECT_TRUE(torch::equal(spliced.embeds.slice(0, 1, 5), features[0]));
  EXPECT_TRUE(torch::equal(spliced.embeds.slice(0, 6, 10), features[1]));
  EXPECT_TRUE((spliced.labels.slice(0, 0, 10) == input::kIgnore).all().item<bool>());
}

class LlavaSelect : public testing::TestWithParam<std::string> {};

TEST_P(LlavaSelect, ChoosesRowsOfEachTile) {
  const torch::NoGradGuard no_grad;
  auto config = test::tiny_config();
  config.feature_select = GetParam();
  config.merge.class_token = GetParam() == "cls_patch";
  config.merge.class_only = GetParam() == "cls";
  auto model = test::tiny_model(config);
  const auto batch = input::collate({example(config, 0, 1)});
  const auto pixels = model->pixel_values(batch.tiles);
  const auto states = model->vision->forward(pixels, {-2})[0];  // [1, 5, 16]
  const auto features = model->vision_features(pixels);
  const auto wanted = GetParam() == "patch" ? states.slice(1, 1)
                      : GetParam() == "cls" ? states.slice(1, 0, 1)
                                            : states;
  EXPECT_TRUE(torch::equal(features, wanted));
  EXPECT_EQ(model->embed(batch).embeds.size(0), 5 + wanted.size(1));
}
INSTANTIATE_TEST_SUITE_P(Features, LlavaSelect, testing::Values("patch", "cls_patch", "cls"));

TEST(Llava, BatchEqualsOneByOne) {
  const torch::NoGradGuard no_grad;
  const auto config = anyres();
  auto model = test::tiny_model(config);
  std::vector<input::Example> examples;
  for (int i = 0; i < 4; ++i) examples.push_back(example(config, i, i % 3));
  const auto logits = [&](const std::vector<input::Example>& rows) {
    const auto spliced = model->embed(input::collate(rows));
    return model->logits(model->llama(spliced.embeds, spliced.starts));
  };
  std::vector<Tensor> alone;
  for (const auto& one : examples) alone.push_back(logits({one}));
  EXPECT_LE(distance(logits(examples), torch::cat(alone)), 1e-5);  // fp32 sums in another order
}

TEST(Llava, LossIsTheMeanOverLearnedTokensOfAllRows) {
  auto model = test::tiny_model();
  const std::vector<input::Example> rows{example(model->config, 0, 1),
                                         example(model->config, 2, 0)};
  const auto batch = input::collate(rows);
  const auto spliced = model->embed(batch);
  const auto logits = model->logits(model->llama(spliced.embeds, spliced.starts));
  double sum = 0;
  std::int64_t count = 0;
  for (std::size_t row = 0; row + 1 < spliced.starts.size(); ++row)
    for (auto t = spliced.starts[row]; t + 1 < spliced.starts[row + 1]; ++t) {
      const auto label = spliced.labels[t + 1].item<std::int64_t>();
      if (label == input::kIgnore) continue;
      sum -= torch::log_softmax(logits[t].to(torch::kFloat64), 0)[label].item<double>();
      ++count;
    }
  EXPECT_EQ(count, batch.num_learned());
  EXPECT_NEAR(model->loss(batch).item<double>(), sum / static_cast<double>(count), 1e-5);
  EXPECT_NEAR(model->loss(batch, /*sum=*/true).item<double>(), sum, 1e-4);
}

TEST(Llava, FlatBatchHasTheGradientsOfItsRows) {
  const auto config = anyres();
  auto model = test::tiny_model(config);
  std::vector<input::Example> examples;
  for (int i = 0; i < 3; ++i) examples.push_back(example(config, i, i));
  model->zero_grad();
  model->loss(input::collate(examples), true).backward();
  std::vector<Tensor> together;
  for (const auto& parameter : model->parameters())
    together.push_back(parameter.grad().defined() ? parameter.grad().clone() : Tensor());
  model->zero_grad();
  for (const auto& one : examples) model->loss(input::collate({one}), true).backward();
  std::size_t i = 0;
  for (const auto& item : model->named_parameters()) {
    const auto &found = together[i++], &wanted = item.value().grad();
    ASSERT_EQ(found.defined(), wanted.defined()) << item.key();
    if (!found.defined()) continue;
    EXPECT_LE(distance(found, wanted), 1e-4 * (1 + wanted.abs().max().item<double>()))
        << item.key();
  }
}

/// Whether any parameter under a name got a gradient.
bool learns(const model::Llava& model, const std::string& prefix) {
  for (const auto& item : model->named_parameters())
    if (item.key().starts_with(prefix) && item.value().grad().defined()) return true;
  return false;
}

TEST(Llava, GradientsReachWhatLearnsAlone) {
  auto model = test::tiny_model(anyres());
  const auto batch = input::collate({example(model->config, 1, 1)});
  const auto step = [&](const std::vector<std::string>& learning) {
    model->zero_grad();
    for (auto& item : model->named_parameters()) {
      bool is_learning = false;
      for (const auto& prefix : learning) is_learning |= item.key().starts_with(prefix);
      item.value().requires_grad_(is_learning);
    }
    model->loss(batch).backward();
    for (const auto* part : {"vision.", "projector.", "llama.", "lm_head.", "image_newline"}) {
      const bool is_learning = std::find(learning.begin(), learning.end(), part) != learning.end();
      EXPECT_EQ(learns(model, part), is_learning) << part;
    }
  };
  step({"projector."});
  step({"projector.", "llama.", "lm_head.", "image_newline"});
  step({"vision."});
}

TEST(Llava, TextAloneTrainsWithZerosWhereOnlyTheProjectorLearns) {
  auto model = test::tiny_model();
  for (auto& item : model->named_parameters())
    item.value().requires_grad_(item.key().starts_with("projector."));
  const auto loss = model->loss(input::collate({example(model->config, 1, 0)}));
  loss.backward();
  for (const auto& weight : model->projector->parameters())
    EXPECT_TRUE(!weight.grad().defined() || weight.grad().abs().sum().item<float>() == 0);
}

TEST(Llava, NothingLearnedIsZeroWithZeroGradients) {
  auto model = test::tiny_model();
  auto row = example(model->config, 1, 1);
  row.labels.assign(row.labels.size(), input::kIgnore);
  const auto loss = model->loss(input::collate({row}));
  EXPECT_EQ(loss.item<float>(), 0);
  loss.backward();
  EXPECT_EQ(model->lm_head->weight.grad().abs().sum().item<float>(), 0);
  EXPECT_EQ(model->projector->layers[0]->weight.grad().abs().sum().item<float>(), 0);
}

TEST(Llava, TiedHeadIsTheEmbedding) {
  auto config = test::tiny_config();
  config.text.tie_word_embeddings = true;
  auto model = test::tiny_model(config);
  EXPECT_TRUE(model->lm_head.is_empty());
  EXPECT_TRUE(model->head_weight().is_same(model->llama->embed_tokens->weight));
  model->loss(input::collate({example(config, 1, 1)})).backward();
  EXPECT_GT(model->llama->embed_tokens->weight.grad().abs().sum().item<float>(), 0);
}

TEST(Llava, RowsThatWereNotPlannedAreAnError) {
  auto model = test::tiny_model();
  auto row = example(model->config, 0, 1);
  row.pictures[0].rows = 9;
  EXPECT_THAT(support::error_of(Fault::data, [&] { model->embed(input::collate({row})); }),
              testing::HasSubstr("became 4 rows where 9 were planned"));
}

TEST(Initialize, DependsOnTheSeedAlone) {
  const auto a = test::tiny_model(test::tiny_config(), 5),
             b = test::tiny_model(test::tiny_config(), 5);
  const auto c = test::tiny_model(test::tiny_config(), 6);
  const auto first = a->parameters(), second = b->parameters(), third = c->parameters();
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(torch::equal(first[i], second[i]));
  EXPECT_FALSE(torch::equal(a->lm_head->weight, c->lm_head->weight));
  EXPECT_TRUE(torch::equal(a->llama->norm->weight, torch::ones({16})));
}

TEST(Initialize, WhatLayersAddBeginsSmallBesideTheTokens) {
  for (const bool tied : {false, true}) {
    auto config = test::tiny_config();
    config.text.tie_word_embeddings = tied;
    model::Llava model(config, torch::TensorOptions());
    model::initialize(model, 1);
    const auto deviation = [&](const std::string& name) {
      return model->named_parameters()["llama." + name].std().item<double>();
    };
    const double matrix = 0.32;  // 0.02 sqrt(4096 / 16)
    EXPECT_NEAR(deviation("embed_tokens.weight"), tied ? matrix : 1, 0.1);
    EXPECT_NEAR(deviation("layers.0.self_attn.q_proj.weight"), matrix, 0.06);
    EXPECT_NEAR(deviation("layers.1.self_attn.o_proj.weight"), matrix / 2, 0.03);
    EXPECT_NEAR(deviation("layers.1.mlp.down_proj.weight"), matrix / 2, 0.03);
  }
}

TEST(Initialize, TouchesTheChosenAlone) {
  auto model = test::tiny_model();
  const auto before = model->lm_head->weight.clone();
  const auto projector = model->projector->layers[0]->weight.clone();
  model::initialize(model, 99,
                    [](const std::string& name) { return name.starts_with("projector."); });
  EXPECT_TRUE(torch::equal(model->lm_head->weight, before));
  EXPECT_FALSE(torch::equal(model->projector->layers[0]->weight, projector));
}

}  // namespace
}  // namespace llava
