// The one way to report a problem: every failure is an Error that says what happened, where, and
// what to try next, and carries the exit code that the program ends with.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace llava {

/// Kinds of failure; the values are the program's exit codes.
enum class Fault : int {
  failure = 1,       // anything else, a full disk among it
  usage = 2,         // a wrong option or setting, an output that cannot be written
  data = 3,          // an input file that is missing, broken or inconsistent
  capacity = 4,      // does not fit in memory or in the context
  peer = 5,          // another process or a collective failed
  non_finite = 6,    // a loss, gradient or weight is not a number
  verification = 7,  // a result differs from what it is checked against
  stopped = 75,      // stopped on a signal after saving
};

/// The one exception type this library throws on purpose.
class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& text) : std::runtime_error(text), fault_(fault) {}

  Fault fault() const { return fault_; }

 private:
  Fault fault_;
};

/// Throws Error. The parts are streamed together; they are what the user reads.
template <class... Parts>
[[noreturn]] void fail(Fault fault, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(fault, text.str());
}

/// Throws Error unless `ok`. The parts name the thing, what was expected, what was found, and what
/// to do about it.
template <class... Parts>
void expect(bool ok, Fault fault, const Parts&... parts) {
  if (!ok) fail(fault, parts...);
}

}  // namespace llava
