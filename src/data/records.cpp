#include "llava/data/records.h"

#include "json_stream.h"
#include "llava/base/config.h"
#include "mixture.h"
#include "random.h"

#include <algorithm>

namespace llava::data {
namespace {

constexpr std::size_t kMaxTurns = 512;

/// `text` for a message: printable and short.
std::string shown(std::string text) {
  constexpr std::size_t kLength = 80;
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return text.size() <= kLength ? text : text.substr(0, kLength) + "...";
}

std::string where(const Place& place, const std::string& id) {
  return place.file + ":" + std::to_string(place.line) + ": sample " +
         (id.empty() ? std::to_string(place.number) : "\"" + shown(id) + "\"");
}

/// The names of a field that holds one or several, or is absent.
std::vector<std::string> names(const Json& record, const char* key, const std::string& where) {
  const auto found = record.find(key);
  if (found == record.end() || found->is_null()) return {};
  std::vector<std::string> all;
  for (const auto& name : found->is_array() ? *found : Json::array({*found})) {
    expect(name.is_string(), Fault::data, where, ": \"", key, "\" is ", shown(name.dump()),
           "; expected a file name or a list of them");
    all.push_back(name.get<std::string>());
  }
  return all;
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

const std::string& text_field(const Json& turn, const char* key, const char* other,
                              const std::string& where) {
  const auto found = turn.contains(key) ? turn.find(key) : turn.find(other);
  expect(found != turn.end(), Fault::data, where, " has no \"", key, "\"");
  expect(found->is_string(), Fault::data, where, ": \"", key, "\" is not text but ",
         shown(found->dump()));
  return found->get_ref<const std::string&>();
}

/// The turns, alternating from the user's first to the assistant's last. A leading turn that is not
/// the user's is left out, as in the reference; one by "system" replaces the template's system
/// text.
text::Conversation conversation(const Json& record, const std::string& where) {
  const auto turns = record.find("conversations");
  expect(turns != record.end() && turns->is_array(), Fault::data, where, ": \"conversations\" is ",
         turns == record.end() ? "missing" : "not a list");
  expect(turns->size() <= kMaxTurns, Fault::data, where, ": ", turns->size(), " turns; at most ",
         kMaxTurns, " are taken");
  text::Conversation talk;
  for (std::size_t i = 0; i < turns->size(); ++i) {
    const auto& turn = (*turns)[i];
    const std::string which = where + ": turn " + std::to_string(i + 1);
    expect(turn.is_object(), Fault::data, which, " is not an object");
    const auto& text = text_field(turn, "value", "content", which);
    const auto who = speaker(text_field(turn, "from", "role", which), which);
    if (who == Speaker::system && i == 0) {
      talk.system = text;
      continue;
    }
    if (who == Speaker::assistant && talk.messages.empty() && i == 0) continue;
    const bool users = talk.messages.size() % 2 == 0;
    expect(who == (users ? Speaker::user : Speaker::assistant), Fault::data, which,
           " is out of turn; human and gpt must alternate, human first");
    expect(!text.empty(), Fault::data, which, " is empty");
    talk.messages.push_back({users ? text::Role::user : text::Role::assistant, text});
  }
  expect(!talk.messages.empty(), Fault::data, where, ": the conversation is empty");
  expect(talk.messages.size() % 2 == 0, Fault::data, where,
         ": the last turn is not answered, so nothing is learned from it");
  return talk;
}

/// "id" as text, whatever it is.
std::string id_of(const Json& record) {
  const auto found = record.find("id");
  if (found == record.end() || found->is_null()) return "";
  return found->is_string() ? found->get<std::string>() : found->dump();
}

}  // namespace

Record parse_record(std::string_view json, const Place& place) {
  Json parsed;
  try {
    parsed = parse_json(json, place.file);
  } catch (const Error& error) {
    // parse_json counts lines from the sample's first; the sample's own line is what helps.
    const std::string text = error.what();
    const auto reason = text.find(": ", place.file.size());
    fail(Fault::data, where(place, ""), ": ", text.substr(reason == text.npos ? 0 : reason + 2));
  }
  Record record;
  record.id = id_of(parsed);
  record.where = where(place, record.id);
  if (record.id.empty()) record.id = std::to_string(place.number);
  record.images = names(parsed, "image", record.where);
  auto videos = names(parsed, "video", record.where);
  expect(videos.size() <= 1, Fault::data, record.where, ": has ", videos.size(),
         " videos; one is supported");
  if (!videos.empty()) record.video = std::move(videos[0]);
  expect(record.video.empty() || record.images.empty(), Fault::data, record.where,
         ": has both \"image\" and \"video\"; a sample has one of them");
  record.conversation = conversation(parsed, record.where);
  return record;
}

struct Records::File {
  explicit File(const std::string& path) : bytes(path) {}
  ReadFile bytes;
  std::vector<std::int64_t> numbers;  // of its spans in spans_, when a strategy reordered them
  std::int64_t first = 0;             // index of its first span
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
  file->first = size();
  auto numbers =
      chosen(strategy, static_cast<std::int64_t>(extents.size()), seed + files_.size(), path);
  for (const auto number : numbers) {
    const auto& extent = extents[static_cast<std::size_t>(number)];
    spans_.push_back(
        {.file = files_.size(), .offset = extent.offset, .size = extent.size, .line = extent.line});
    hash = mixed(hash ^ static_cast<std::uint64_t>(number));
  }
  if (strategy != "all") file->numbers = std::move(numbers);
  fingerprint_ = mixed(fingerprint_ ^ hash);
  files_.push_back(file);
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
  const auto& file = *files_[span.file];
  const auto position = index - file.first;
  const auto number =
      file.numbers.empty() ? position : file.numbers[static_cast<std::size_t>(position)];
  return {file.bytes.path(), span.line, number + 1};
}

Record Records::at(std::int64_t index) const { return parse_record(json(index), place(index)); }

}  // namespace llava::data
