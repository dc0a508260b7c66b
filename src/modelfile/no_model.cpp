#include "modelfile/no_model.h"

#include <algorithm>

#include "io/paths.h"
#include "modelfile/hub_name.h"
#include "tensor/error.h"

namespace lk {
namespace {

[[noreturn]] void refuse_path(const std::string& path, const std::string& why) {
  throw InputError(concat(path, ": ", why));
}

bool ends_with_any(const std::string& name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

void refuse_missing(const std::string& path) {
  if (const std::string command = download_command(path); !command.empty())
    refuse_path(
        path, concat("no such file or folder, nor a model in the Hugging Face hub's cache on this "
                     "machine. If it is a model's name on the hub, download it: ",
                     command));
  refuse_path(
      path,
      "no such file or folder; a model is a .gguf file or a folder with config.json, "
      "tokenizer.json and model.safetensors, as hf download ORG/NAME --local-dir DIR fetches");
}

void refuse_folder(const std::string& path) {
  auto holds = [&](const char* name) { return exists(path + "/" + name); };
  if (holds("config.json")) return;
  if (holds("adapter_config.json"))
    refuse_path(path, "is an adapter, not a model: give it as --adapter, and its base as --model");
  const std::vector<std::string> names = list_folder(path);
  const auto gguf = std::find_if(names.begin(), names.end(),
                                 [](const std::string& name) { return name.ends_with(".gguf"); });
  if (gguf != names.end())
    refuse_path(path,
                concat("has no config.json, but ", *gguf, ": give that file, ", path, "/", *gguf));
  if (holds("snapshots"))
    refuse_path(path, "is a model's folder in the hub's cache: give the folder in its snapshots/");
  refuse_path(path, "has no config.json, so it is no Hugging Face model folder");
}

void refuse_file(const std::string& path) {
  if (ends_with_any(path, {".bin", ".pt", ".pth", ".ckpt"}))
    refuse_path(path,
                "pickle files can run code and are never read. Save the model as safetensors (in "
                "transformers, model.save_pretrained(DIR)) and give the folder");
  if (ends_with_any(path, {".safetensors", ".json"}))
    refuse_path(path,
                concat("a model of several files is given as its folder: ", parent_folder(path)));
}

}  // namespace

void refuse_what_is_no_model(const std::string& path) {
  require(!path.empty(), "`model` is empty: a .gguf file or a folder is expected");
  if (!exists(path)) refuse_missing(path);
  if (is_folder(path))
    refuse_folder(path);
  else
    refuse_file(path);
}

std::string download_command(const std::string& name) {
  std::string repository = name, revision;
  for (const std::string_view host : {"https://huggingface.co/", "https://hf.co/"})
    if (repository.starts_with(host)) repository.erase(0, host.size());
  if (const std::size_t at = repository.find('@'); at != repository.npos) {
    revision = " --revision " + repository.substr(at + 1);
    repository.resize(at);
  }
  if (!is_hub_name(repository)) return "";
  return concat("hf download ", repository, revision, " --local-dir DIR");
}

}  // namespace lk
