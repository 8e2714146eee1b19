#include "llava/dist/gradient_sync.h"

namespace llava::dist {
namespace {

class Alone : public GradientSync {
 public:
  void backward(const torch::Tensor& loss, bool /*last_micro_step*/) override { loss.backward(); }
};

}  // namespace

std::unique_ptr<GradientSync> alone() { return std::make_unique<Alone>(); }

}  // namespace llava::dist
