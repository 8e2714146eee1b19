// Twenty training steps of a tiny model whose result is known: what `llava doctor` trusts a build
// by.
#pragma once

namespace llava::cli {

struct SelfTest {
  double first_loss = 0, last_loss = 0, expected_loss = 0;
  bool passed = false;
};

/// Pictures, projector, decoder, loss, backward and optimizer on the CPU in float32; under a
/// second.
SelfTest self_test();

}  // namespace llava::cli
