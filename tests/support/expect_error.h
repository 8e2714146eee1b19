// What a person sees when something goes wrong: the kind of fault and the words of the message.
#pragma once

#include "llava/base/check.h"

#include <gmock/gmock.h>

#include <optional>
#include <string>

namespace llava::support {

/// Runs `work`, which must throw Error of this fault, and returns the message.
template <class Work>
std::string error_of(Fault fault, Work&& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.fault()), static_cast<int>(fault)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

}  // namespace llava::support
