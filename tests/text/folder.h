// Model folders for tokenizer tests: files named by their content, in a temporary folder.
#pragma once

#include "llava/base/files.h"
#include "llava/text/tokenizer.h"
#include "support/temporary_folder.h"

#include <map>
#include <string>

namespace llava::text {

using Files = std::map<std::string, std::string>;

/// A folder with the given files; "tokenizer.model" is Llama's unless given otherwise.
class Folder {
 public:
  explicit Folder(Files files = {}) {
    if (!files.contains("tokenizer.model")) files["tokenizer.model"] = llama_model();
    for (const auto& [name, bytes] : files) {
      if (!bytes.empty()) folder_.write(name, bytes);
    }
  }

  static std::string llama_model() { return read_file(LLAVA_GOLDEN "/tokenizer.model"); }

  std::string path() const { return folder_.path(); }
  Tokenizer load(std::optional<Spacing> spacing = {}) const {
    return Tokenizer::load(folder_.path(), {.spacing = spacing});
  }

 private:
  support::TemporaryFolder folder_;
};

/// Llama's tokenizer, loaded once for each spacing.
inline const Tokenizer& llama(Spacing spacing) {
  static std::map<Spacing, Tokenizer> loaded;
  const auto found = loaded.find(spacing);
  if (found != loaded.end()) return found->second;
  return loaded.emplace(spacing, Folder().load(spacing)).first->second;
}

}  // namespace llava::text
