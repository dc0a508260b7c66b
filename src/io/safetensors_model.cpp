// A Hugging Face folder's weights as one TensorReader.
//
// The index is untrusted: a shard's name must be one path component, and what it resolves to must
// be a regular file in the folder itself or in the folder where the index really lies. That lets
// links work as people use them (the hub's cache, where index and shards all point into
// ../../blobs; a folder of links to another model folder) while an index can't reach any other
// file.
#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <unordered_map>

#include "io/fs.h"
#include "io/input_file.h"
#include "io/json_scanner.h"
#include "io/paths.h"
#include "io/printable.h"
#include "io/safetensors.h"
#include "tensor/error.h"

namespace lk {

namespace {

namespace stdfs = std::filesystem;
// More than kMostOpen files are opened for each read anew: systems let a process have 1024 or fewer.
constexpr std::size_t kMaxShards = 10'000, kMostOpen = 64, kMaxIndexTensors = 200'000,
                      kMaxIndexBytes = std::size_t{64} << 20;

std::string reason(int error) { return std::generic_category().message(error); }

class ShardedModel : public TensorReader {
 public:
  explicit ShardedModel(const std::string& folder)
      : path_((stdfs::path(folder) / "model.safetensors.index.json").string()) {
    const std::map<std::string, std::string> map = read_weight_map();
    std::set<std::string> shards;
    for (const auto& [tensor, shard] : map) shards.insert(shard);
    if (shards.size() > kMaxShards)
      throw InputError(concat(path_, ": weight_map: more than ", kMaxShards, " files"));
    // All names are checked before a file is opened, and all links before the first is followed.
    for (const std::string& shard : shards) check_name(shard);
    std::map<std::string, std::string> paths;
    for (const std::string& shard : shards) paths[shard] = shard_path(folder, shard);
    const auto between =
        shards.size() > kMostOpen ? InputFile::Between::Closed : InputFile::Between::Open;
    for (const std::string& shard : shards) {
      files_.push_back(std::make_unique<SafetensorsFile>(paths[shard], between));
      const SafetensorsFile& file = *files_.back();
      for (std::string& name : file.names()) {
        auto at = map.find(name);
        if (at == map.end())
          throw InputError(path_ + ": weight_map: tensor " + printable(name) + " of " +
                           printable(shard) + " is missing");
        if (at->second != shard)
          throw InputError(path_ + ": weight_map: tensor " + printable(name) + " is also in " +
                           printable(shard) + ": it must be in one file");
        reader_of_.emplace(std::move(name), &file);
      }
    }
    for (const auto& [tensor, shard] : map)
      if (reader_of_.count(tensor) == 0)
        throw InputError(path_ + ": weight_map: tensor " + printable(tensor) + " is not in " +
                         printable(shard));
  }

  const std::string& path() const override { return path_; }
  const std::string& path_of(const std::string& name) const override {
    const auto at = reader_of_.find(name);
    return at == reader_of_.end() ? path_ : at->second->path();
  }
  std::vector<const InputFile*> files() const override {
    std::vector<const InputFile*> open;
    for (const auto& file : files_) open.push_back(file->files()[0]);
    return open;
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, file] : reader_of_) names.push_back(name);
    std::sort(names.begin(), names.end());
    return names;
  }
  bool has(const std::string& name) const override { return reader_of_.count(name) > 0; }
  Shape shape(const std::string& name) const override { return reader(name).shape(name); }
  std::string stored_type(const std::string& name) const override {
    return reader(name).stored_type(name);
  }
  void check_readable(const std::string& name) const override { reader(name).check_readable(name); }
  void read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                 float* dst) const override {
    reader(name).read_rows(name, begin, end, dst);
  }
  std::optional<DType> plain_type(const std::string& name) const override {
    return reader(name).plain_type(name);
  }
  void read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                   std::uint8_t* dst) const override {
    reader(name).read_stored(name, begin, end, dst);
  }

 private:
  const SafetensorsFile& reader(const std::string& name) const {
    auto at = reader_of_.find(name);
    if (at == reader_of_.end())
      throw InputError(path_ + ": tensor " + printable(name) + ": missing");
    return *at->second;
  }

  // Reads the map from tensor names to shard names. Nothing relies on the rest of the index
  // (metadata.total_size).
  std::map<std::string, std::string> read_weight_map() const {
    const std::string text = read_file(path_, kMaxIndexBytes);
    JsonScanner in(text, path_);
    std::optional<std::map<std::string, std::string>> map;
    in.object([&](const std::string& key) {
      if (key != "weight_map") return in.skip();
      if (map) in.fail("weight_map occurs twice");
      map.emplace();
      in.object([&](std::string tensor) {
        if (map->size() == kMaxIndexTensors)
          in.fail(concat("weight_map: more than ", kMaxIndexTensors, " tensors"));
        auto [at, is_new] = map->try_emplace(std::move(tensor));
        if (!is_new) in.fail("weight_map: the key " + printable(at->first) + " occurs twice");
        at->second = in.string();
      });
    });
    in.end();
    if (!map || map->empty()) throw InputError(path_ + ": weight_map: missing or empty");
    return std::move(*map);
  }

  InputError refused(const std::string& shard, const std::string& rule) const {
    return InputError(path_ + ": weight_map: file " + printable(shard) + ": " + rule);
  }

  void check_name(const std::string& shard) const {
    if (shard.empty() || shard == "." || shard == ".." || shard.size() > 255 ||
        shard.find('/') != std::string::npos || shard.find('\0') != std::string::npos)
      throw refused(shard, "must be the name of a file in the same folder");
  }

  std::string shard_path(const std::string& folder, const std::string& shard) const {
    auto fail = [&](const std::string& rule) { return refused(shard, rule); };
    const std::string named = (stdfs::path(folder) / shard).string();
    std::string real, own, index;
    auto resolve = [&](const std::string& path, std::string& resolved) {
      if (fs().realpath(path.c_str(), resolved) == 0) return;
      if (blames_the_path(errno)) throw fail("cannot be opened: " + reason(errno));
      throw IoError(system_message(path, "cannot examine", errno));
    };
    resolve(named, real);
    resolve(folder, own);
    resolve(path_, index);
    const stdfs::path parent = stdfs::path(real).parent_path();
    if (parent != own && parent != stdfs::path(index).parent_path())
      throw fail("is a link out of the model's folder (to " + printable(real) +
                 "): give the folder that holds the files");
    if (real == index) throw fail("is the index itself");
    return named;
  }

  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::unordered_map<std::string, const SafetensorsFile*> reader_of_;
};

}  // namespace

std::unique_ptr<TensorReader> open_safetensors_model(const std::string& folder) {
  const std::string single = (stdfs::path(folder) / "model.safetensors").string();
  const std::string index = (stdfs::path(folder) / "model.safetensors.index.json").string();
  if (!exists(single) && exists(index)) return std::make_unique<ShardedModel>(folder);
  for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
    if (!exists(single) && exists((stdfs::path(folder) / pickle).string()))
      throw InputError(concat(folder, ": has its weights in ", pickle,
                              " only: pickle files can run code and are never read. Save the model "
                              "as safetensors: in transformers, model.save_pretrained(DIR)"));
  return std::make_unique<SafetensorsFile>(single);
}

}  // namespace lk
