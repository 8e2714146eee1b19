// How the processes of a run find each other: a small key-value store at one address.
#pragma once

#include "llava/dist/process_group.h"

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace llava::dist {

/// Environment variable with the number of a listening socket that the store takes over.
constexpr const char* kListenDescriptor = "LLAVA_LISTEN_DESCRIPTOR";

/// Seconds until a process that does not come is given up.
double join_seconds(const GroupConfig& config);

/// Connects to the run's store, keeping it here if this place does so and `may_serve`.
/// Throws Error(usage) if the address is unknown or the port taken, Error(peer) if nobody answers.
c10::intrusive_ptr<c10d::Store> open_store(const Place& place, const GroupConfig& config,
                                           bool may_serve);

/// The address of this machine by which the others reach it.
std::string own_address(const Place& place);

}  // namespace llava::dist
