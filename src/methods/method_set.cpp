#include "methods/method_set.h"

#include "io/durable.h"
#include "io/json.h"
#include "io/output_folder.h"

namespace lk {
namespace {

template <class F>
std::vector<Parameter*> joined(const std::vector<std::unique_ptr<Method>>& methods, const F& of) {
  std::vector<Parameter*> all;
  for (const auto& method : methods) {
    const std::vector<Parameter*> own = of(*method);
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

}  // namespace

MethodSet::MethodSet(std::vector<std::unique_ptr<Method>> methods) : methods_(std::move(methods)) {
  check(methods_.size() >= 2, "MethodSet: ", methods_.size(), " methods");
}

std::string MethodSet::name() const {
  std::string names;
  for (const auto& method : methods_) names += (names.empty() ? "" : ",") + method->name();
  return names;
}

std::vector<Parameter*> MethodSet::parameters() const {
  return joined(methods_, [](const Method& m) { return m.parameters(); });
}

std::vector<Parameter*> MethodSet::first_to_move() const {
  return joined(methods_, [](const Method& m) { return m.first_to_move(); });
}

std::int64_t MethodSet::weight_gradients() const {
  std::int64_t n = 0;
  for (const auto& method : methods_) n += method->weight_gradients();
  return n;
}

std::int64_t MethodSet::copy_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& method : methods_) bytes += method->copy_bytes();
  return bytes;
}

void MethodSet::set_enabled(bool enabled) {
  for (const auto& method : methods_) method->set_enabled(enabled);
}

std::vector<std::pair<std::string, std::string>> MethodSet::facts() const {
  std::vector<std::pair<std::string, std::string>> all;
  for (const auto& method : methods_)
    for (auto& [name, value] : method->facts()) all.emplace_back(name, value);
  return all;
}

void MethodSet::lay_out_for_training() {
  for (const auto& method : methods_) method->lay_out_for_training();
}

void MethodSet::save(const std::string& folder, const BaseIdentity& base) const {
  std::vector<std::string> names;
  for (const auto& method : methods_) {
    const std::string own = folder + "/" + method->name();
    make_folders(own);
    method->save(own, base);
    names.push_back(method->name());
  }
  write_file_durably(folder + "/" + kMethodList, json_text(Json{{"methods", names}}, 2) + "\n");
}

}  // namespace lk
