// SHA-256: the standard's examples, both implementations, any way of cutting the input.
#include <string>
#include <vector>

#include "harness.h"
#include "hostile.h"
#include "io/sha256.h"
#include "io/sha256_rounds.h"

using namespace lk;

namespace {
std::string digest(const std::string& text) {
  Sha256 h;
  h.update(text.data(), text.size());
  return h.hex();
}
}  // namespace

TEST_CASE("sha256: FIPS 180-4 examples") {
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(digest(std::string(1'000'000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("sha256: pieces of any size give the same digest") {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 7 + i / 13);
  for (std::size_t length = 0; length <= text.size(); length += length < 140 ? 1 : 37) {
    const std::string whole = digest(text.substr(0, length));
    for (std::size_t piece : {1, 3, 55, 56, 63, 64, 65, 127}) {
      Sha256 h;
      for (std::size_t at = 0; at < length; at += piece)
        h.update(text.data() + at, std::min(piece, length - at));
      REQUIRE(h.hex() == whole);
    }
  }
}

TEST_CASE("sha256: the processor's instructions agree with portable code") {
  if (sha256_rounds_x86() == nullptr) LK_SKIP("this processor has no SHA instructions");
  std::mt19937 rng(5);
  std::vector<std::uint8_t> data(64 * 33);
  for (auto& b : data) b = static_cast<std::uint8_t>(rng());
  for (std::size_t blocks : {0, 1, 2, 33}) {
    std::uint32_t a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = b[i] = static_cast<std::uint32_t>(rng());
    sha256_rounds_portable(a, data.data(), blocks);
    sha256_rounds_x86()(b, data.data(), blocks);
    for (int i = 0; i < 8; ++i) CHECK(a[i] == b[i]);
  }
}

TEST_CASE("sha256: of a file larger than one read") {
  test::ScratchFolder folder;
  CHECK(sha256_file(folder.write("a", std::string(1'000'000, 'a'))) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  std::string big((std::size_t{5} << 19) + 1, 'x');
  CHECK(sha256_file(folder.write("b", big)) == digest(big));
  CHECK(sha256_file(folder.write("c", "")) == digest(""));
}
