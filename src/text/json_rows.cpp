// Splits JSON lines and JSON arrays into the texts of their objects. Only borders are found here;
// whether an object is valid, its parser says.
#include <algorithm>

#include "tensor/error.h"
#include "text/row_splitter.h"

namespace lk {

namespace {

constexpr const char* kBlank = " \t\r\n";

bool blank(std::string_view text) {
  return text.find_first_not_of(kBlank) == std::string_view::npos;
}

class LineSplitter : public RowSplitter {
 public:
  LineSplitter(const std::string& name, const RawRowVisitor& visit) : name_(name), visit_(visit) {}

  bool add(std::string_view piece) override {
    for (std::size_t begin = 0; going_ && begin < piece.size();) {
      std::size_t end = piece.find('\n', begin);
      const bool ended = end != std::string_view::npos;
      if (!ended) end = piece.size();
      line_.append(piece, begin, end - begin);
      begin = end + 1;
      if (line_.size() > kMaxRowBytes) {  // the parser refuses it: no need to hold the rest
        visit_(RawRow(name_, number_, std::move(line_)));
        going_ = false;
      } else if (ended) {
        end_line();
      }
    }
    return going_;
  }

  void end() override { end_line(); }

 private:
  void end_line() {
    if (!blank(line_)) going_ = visit_(RawRow(name_, number_, std::move(line_)));
    line_.clear();
    ++number_;
  }

  const std::string& name_;
  const RawRowVisitor& visit_;
  std::string line_;  // the part of the current line that is read
  std::size_t number_ = 1;
  bool going_ = true;
};

class ArraySplitter : public RowSplitter {
 public:
  ArraySplitter(const std::string& name, const RawRowVisitor& visit) : name_(name), visit_(visit) {}

  bool add(std::string_view piece) override {
    for (char c : piece) {
      if (c == '\n') ++line_;
      take(c);
      if (!going_) return false;
      if (text_.size() > kMaxRowBytes) {
        visit_(RawRow(name_, first_line_, std::move(text_), number_));
        return going_ = false;
      }
    }
    return true;
  }

  void end() override {
    if (place_ == Place::Behind) return;
    throw InputError(concat(name_, ":", line_, ": the text ends inside the array",
                            number_ > 0 ? concat(", in or after element ", number_) : ""));
  }

 private:
  enum class Place { Before, First, Element, Next, Behind };

  void take(char c) {
    const bool space = std::string_view(kBlank).find(c) != std::string_view::npos;
    if (place_ == Place::Element) {
      element(c);
    } else if (space) {
      return;
    } else if (place_ == Place::Before) {
      place_ = Place::First;  // c is [
    } else if (place_ == Place::Behind) {
      fail("something follows after the end of the array");
    } else if (place_ == Place::First && c == ']') {
      place_ = Place::Behind;
    } else if (c == ']' || c == ',') {
      fail("an element is expected behind the comma");
    } else {
      place_ = Place::Element;
      first_line_ = line_;
      ++number_;
      element(c);
    }
  }

  // Takes a character of an element, or the comma or bracket that ends it.
  void element(char c) {
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (depth_ == 0 && (c == ',' || c == ']')) {
      place_ = c == ',' ? Place::Next : Place::Behind;
      going_ = visit_(RawRow(name_, first_line_, std::move(text_), number_));
      text_.clear();
      return;
    } else if ((c == '}' || c == ']') && depth_ > 0) {
      --depth_;
    }
    text_ += c;
  }

  [[noreturn]] void fail(const char* what) const {
    throw InputError(concat(name_, ":", line_, ": ", what));
  }

  const std::string& name_;
  const RawRowVisitor& visit_;
  std::string text_;  // the part of the current element that is read
  std::size_t line_ = 1, first_line_ = 1, number_ = 0;
  Place place_ = Place::Before;
  int depth_ = 0;  // of open brackets inside the element
  bool in_string_ = false, escaped_ = false, going_ = true;
};

}  // namespace

std::unique_ptr<RowSplitter> split_lines(const std::string& name, const RawRowVisitor& visit) {
  return std::make_unique<LineSplitter>(name, visit);
}

std::unique_ptr<RowSplitter> split_array(const std::string& name, const RawRowVisitor& visit) {
  return std::make_unique<ArraySplitter>(name, visit);
}

}  // namespace lk
