// Lines a person types: with history and editing on a terminal, as they come from a pipe.
#pragma once

#include <optional>
#include <string>

namespace llava::cli {

/// Whether a person sits there: stdin and stdout are both terminals.
bool is_interactive();

/// The next line of stdin without its end, or nothing at its end. On a terminal `prompt` is shown
/// and the line can be edited; Ctrl-C there ends the program.
std::optional<std::string> read_line(const std::string& prompt);

/// From here to the next read_line() Ctrl-C on a terminal is noted, and ends the program when
/// pressed twice.
void begin_answer();
bool is_interrupted();

}  // namespace llava::cli
