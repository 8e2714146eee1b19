// Runs a scenario in several processes: this very program again, once per rank, each with a time
// limit. Nothing is left running.
#pragma once

#include "llava/dist/process_group.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace llava::dist::testing {

struct Outcome {
  int code = 0;     // exit code, or 128 + signal
  std::string out;  // stdout
  std::string err;
};

struct Run {
  std::string scenario;
  int ranks = 2;
  std::map<std::string, std::string> environment = {};
  double limit_seconds = 60;
  int port = 0;     // 0: a free one
  int absent = -1;  // a rank that is not started
  int stuck = -1;   // a rank that is killed when the others have ended
};

/// Outcomes by rank. A process that outlives the limit is killed and has code 137.
std::vector<Outcome> run_ranks(const Run& run);

/// A port nobody listens on.
int free_port();

/// The body of a test "Rank.DISABLED_<scenario>", which run_ranks runs in every rank: does the part
/// and ends the process with its result; errors end it as they end the program.
[[noreturn]] void play(const std::function<int()>& part);

/// The number of an environment variable, or `otherwise`.
double number(const char* name, double otherwise);
std::string text(const char* name, const std::string& otherwise = "");

/// The group of this process, from the environment that run_ranks made.
GroupConfig group_config();

}  // namespace llava::dist::testing
