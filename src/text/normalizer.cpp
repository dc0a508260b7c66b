#include "text/normalizer.h"

namespace lk {

namespace {

void append(Normalized& out, std::string_view what, std::size_t origin) {
  out.text += what;
  out.origin.resize(out.text.size(), origin);
}

}  // namespace

bool Normalizer::surely_keeps(std::string_view text) const {
  if (text.empty()) return true;
  for (const Step& step : steps_) {
    if (step.kind == Kind::Nfc && !surely_nfc(text)) return false;
    if (step.kind == Kind::Prepend && !step.to.empty()) return false;
    if (step.kind == Kind::Replace && text.find(step.from) != std::string_view::npos) return false;
  }
  return true;
}

Normalized Normalizer::run(const Step& step, std::string_view text) {
  if (step.kind == Kind::Nfc) return to_nfc(text);
  Normalized out;
  out.text.reserve(text.size() + text.size() / 4);
  out.origin.reserve(out.text.capacity());
  if (step.kind == Kind::Prepend) {
    if (!text.empty()) append(out, step.to, 0);
    out.text += text;
    for (std::size_t i = 0; i < text.size(); ++i) out.origin.push_back(i);
    return out;
  }
  for (std::size_t i = 0; i < text.size();) {
    if (text.substr(i, step.from.size()) == step.from) {
      append(out, step.to, i);
      i += step.from.size();
    } else {
      append(out, text.substr(i, 1), i);
      ++i;
    }
  }
  return out;
}

Normalized Normalizer::apply(std::string_view text) const {
  Normalized out;
  out.text = text;
  for (std::size_t i = 0; i < text.size(); ++i) out.origin.push_back(i);
  for (const Step& step : steps_) {
    Normalized next = run(step, out.text);
    for (std::size_t& origin : next.origin) origin = out.origin[origin];
    out = std::move(next);
  }
  return out;
}

}  // namespace lk
