// What happens when another program cuts a mapped file short while it is read.
#pragma once

namespace llava {

/// Reading a page of a MappedFile that is no longer in the file is a SIGBUS, which no check of the
/// size beforehand can exclude. From now on it ends the process with one line on stderr naming the
/// file, and exit code 3 (data), not by the signal. For main(): a library leaves signals alone.
void report_truncated_files();

}  // namespace llava
