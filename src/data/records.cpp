#include "llava/data/records.h"

#include "json_reader.h"
#include "json_stream.h"
#include "llava/base/config.h"
#include "mixture.h"
#include "random.h"

#include <algorithm>

namespace llava::data {
namespace {

constexpr std::size_t kMaxTurns = 512;
constexpr std::uint64_t kHoldOut = 1ull << 32;  // a stream of random numbers no epoch uses

/// `text` for a message: printable and short.
std::string shown(std::string_view full) {
  constexpr std::size_t kLength = 80;
  std::string text(full.substr(0, kLength));
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return full.size() <= kLength ? text : text + "...";
}

std::string where(const Place& place, const std::string& id) {
  return place.file + ":" + std::to_string(place.line) + ": sample " +
         (id.empty() ? std::to_string(place.number) : "\"" + shown(id) + "\"");
}

/// A turn as the file has it, not yet checked.
struct RawTurn {
  std::optional<std::string> from, value;
};

/// A record as the file has it, not yet checked.
struct RawRecord {
  std::optional<std::string> id;
  std::optional<std::vector<std::string>> images, videos;
  std::optional<std::vector<RawTurn>> turns;
};

/// Reads a field once.
template <class T>
void set_once(JsonReader& reader, const std::string& key, std::optional<T>& field, T value) {
  if (field) reader.fail("the key \"" + key + "\" appears twice");
  field = std::move(value);
}

std::string read_text(JsonReader& reader, const std::string& what) {
  if (reader.peek() != '"') reader.fail(what + " is " + shown(reader.skip()) + ", not text");
  return reader.string();
}

/// One name, several in a list, or null for none.
std::vector<std::string> read_names(JsonReader& reader, const std::string& key) {
  std::vector<std::string> names;
  if (reader.peek() == 'n') {
    reader.skip();
  } else if (reader.peek() == '[') {
    reader.array([&] { names.push_back(read_text(reader, "a name in \"" + key + "\"")); });
  } else {
    names.push_back(read_text(reader, "\"" + key + "\""));
  }
  return names;
}

std::vector<RawTurn> read_turns(JsonReader& reader) {
  std::vector<RawTurn> turns;
  if (reader.peek() != '[') reader.fail("\"conversations\" is not a list");
  reader.array([&] {
    if (turns.size() == kMaxTurns)
      reader.fail("more than " + std::to_string(kMaxTurns) + " turns in one conversation");
    const std::string which = "turn " + std::to_string(turns.size() + 1);
    if (reader.peek() != '{') reader.fail(which + " is not an object");
    auto& turn = turns.emplace_back();
    reader.object([&](const std::string& key) {
      const bool is_from = key == "from" || key == "role";
      if (is_from || key == "value" || key == "content") {
        set_once(reader, key, is_from ? turn.from : turn.value,
                 read_text(reader, which + ": \"" + key + "\""));
      } else {
        reader.skip();
      }
    });
  });
  return turns;
}

void read_raw(std::string_view json, std::int64_t line, RawRecord& raw) {
  JsonReader reader(json, line);
  reader.object([&](const std::string& key) {
    if (key == "id") {
      const bool is_text = reader.peek() == '"';
      set_once(reader, key, raw.id, is_text ? reader.string() : std::string(reader.skip()));
    } else if (key == "image") {
      set_once(reader, key, raw.images, read_names(reader, key));
    } else if (key == "video") {
      set_once(reader, key, raw.videos, read_names(reader, key));
    } else if (key == "conversations") {
      set_once(reader, key, raw.turns, read_turns(reader));
    } else {
      reader.skip();
    }
  });
  reader.end();
}

enum class Speaker { system, user, assistant };

Speaker speaker(const std::string& word, const std::string& where) {
  if (word == "human" || word == "user") return Speaker::user;
  if (word == "gpt" || word == "assistant") return Speaker::assistant;
  if (word == "system") return Speaker::system;
  fail(Fault::data, where, " is from \"", shown(word), "\"",
       suggestion(word, {"human", "gpt", "user", "assistant", "system"}),
       "; expected human, gpt or system");
}

/// The turns, alternating from the user's first to the assistant's last. A leading turn that is not
/// the user's is left out, as in the reference; one by "system" replaces the template's system
/// text.
text::Conversation conversation(std::vector<RawTurn>& turns, const std::string& where) {
  text::Conversation talk;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    auto& turn = turns[i];
    const auto which = [&] { return where + ": turn " + std::to_string(i + 1); };
    for (const auto& [field, name] :
         {std::pair(&turn.from, "from"), std::pair(&turn.value, "value")})
      if (!*field) fail(Fault::data, which(), " has no \"", name, "\"");
    const auto who = speaker(*turn.from, which());
    if (i == 0 && who == Speaker::system) {
      talk.system = std::move(*turn.value);
      continue;
    }
    if (i == 0 && who == Speaker::assistant) continue;
    const bool users = talk.messages.size() % 2 == 0;
    if (who != (users ? Speaker::user : Speaker::assistant))
      fail(Fault::data, which(), " is out of turn; human and gpt must alternate, human first");
    if (turn.value->empty()) fail(Fault::data, which(), " is empty");
    talk.messages.push_back(
        {users ? text::Role::user : text::Role::assistant, std::move(*turn.value)});
  }
  expect(!talk.messages.empty(), Fault::data, where, ": the conversation is empty");
  expect(talk.messages.size() % 2 == 0, Fault::data, where,
         ": the last turn is not answered, so nothing is learned from it");
  return talk;
}

}  // namespace

Record parse_record(std::string_view json, const Place& place) {
  RawRecord raw;
  try {
    read_raw(json, place.line, raw);
  } catch (const Error& error) {
    fail(error.fault(), where(place, raw.id.value_or("")), ": ", error.what());
  }
  Record record;
  record.where = where(place, raw.id.value_or(""));
  record.id = raw.id.value_or(std::to_string(place.number));
  record.images = std::move(raw.images).value_or(std::vector<std::string>{});
  auto videos = std::move(raw.videos).value_or(std::vector<std::string>{});
  expect(videos.size() <= 1, Fault::data, record.where, ": has ", videos.size(),
         " videos; one is supported");
  if (!videos.empty()) record.video = std::move(videos[0]);
  expect(record.video.empty() || record.images.empty(), Fault::data, record.where,
         ": has both \"image\" and \"video\"; a sample has one of them");
  expect(raw.turns.has_value(), Fault::data, record.where, ": has no \"conversations\"");
  record.conversation = conversation(*raw.turns, record.where);
  return record;
}

std::string sample_id(std::string_view json, const Place& place) {
  RawRecord raw;
  try {
    read_raw(json, place.line, raw);
  } catch (const Error&) {  // what came before the fault is still good
  }
  return raw.id.value_or(std::to_string(place.number));
}

struct Records::File {
  explicit File(const std::string& path) : bytes(path) {}
  ReadFile bytes;
};

Records::Records(const std::string& data_path, std::uint64_t seed) {
  for (const auto& source : list_sources(data_path)) add(source.path, source.strategy, seed);
  expect(!spans_.empty(), Fault::data, data_path, ": holds no samples");
}

void Records::add(const std::string& path, const std::string& strategy, std::uint64_t seed) {
  expect(files_.size() < (1 << 16), Fault::data, path, ": more than ", 1 << 16, " files");
  const auto file = std::make_shared<File>(path);
  std::uint64_t hash = 0;
  const auto extents = find_samples(file->bytes, hash);
  expect(extents.size() <= UINT32_MAX, Fault::data, path, ": more than ", UINT32_MAX, " samples");
  const auto count = static_cast<std::int64_t>(extents.size());
  const auto numbers = chosen(strategy, count, seed + files_.size(), path);
  spans_.reserve(spans_.size() + numbers.size());
  for (const auto number : numbers) {
    const auto& extent = extents[static_cast<std::size_t>(number)];
    spans_.push_back({.file = files_.size(),
                      .offset = extent.offset,
                      .size = extent.size,
                      .line = extent.line,
                      .number = static_cast<std::uint32_t>(number)});
    hash = mixed(hash ^ static_cast<std::uint64_t>(number));
  }
  fingerprint_ = mixed(fingerprint_ ^ hash);
  files_.push_back(file);
}

std::pair<Records, Records> Records::hold_out(std::int64_t count, std::uint64_t seed) const {
  expect(count > 0 && count < size(), Fault::usage, "cannot hold ", count, " of ", size(),
         " samples out; there must be some to train on and some to validate with");
  std::vector<bool> is_held(spans_.size());
  const auto drawn = Random(seed, kHoldOut).permutation(spans_.size());
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
    is_held[static_cast<std::size_t>(drawn[i])] = true;
  Records kept, held;
  kept.files_ = held.files_ = files_;
  for (std::size_t i = 0; i < spans_.size(); ++i)
    (is_held[i] ? held : kept).spans_.push_back(spans_[i]);
  kept.fingerprint_ = mixed(fingerprint_ ^ mixed(seed) ^ static_cast<std::uint64_t>(count));
  held.fingerprint_ = mixed(kept.fingerprint_);
  return {std::move(kept), std::move(held)};
}

std::string Records::json(std::int64_t index) const {
  const auto& span = spans_.at(static_cast<std::size_t>(index));
  const auto& file = files_[span.file]->bytes;
  std::string text(span.size, '\0');
  const auto got = file.read(span.offset, text.data(), text.size());
  expect(got == text.size(), Fault::data, file.path(), ":", span.line,
         ": the file became shorter while it was in use");
  return text;
}

Place Records::place(std::int64_t index) const {
  const auto& span = spans_.at(static_cast<std::size_t>(index));
  return {files_[span.file]->bytes.path(), span.line, std::int64_t{span.number} + 1};
}

Record Records::at(std::int64_t index) const { return parse_record(json(index), place(index)); }

void SampleWriter::add(std::string_view json) {
  constexpr std::size_t kBufferBytes = 1 << 20;
  (text_ += empty_ ? "[\n" : ",\n") += json;
  empty_ = false;
  if (text_.size() < kBufferBytes) return;
  file_.write(text_);
  text_.clear();
}

void SampleWriter::commit() {
  file_.write(text_ += empty_ ? "[]\n" : "\n]\n");
  file_.commit();
}

}  // namespace llava::data
