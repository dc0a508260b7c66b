// A staged output appears whole or not at all, whatever call fails.
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "harness.h"
#include "hostile.h"
#include "io/durable.h"
#include "io/staged_output.h"

using namespace lk;
using namespace lk::test;

namespace {

// The file system with the n-th call failing (0: none), and a disk as small as the test wants.
class FailingFs : public Fs {
 public:
  explicit FailingFs(int n) : n_(n) {}
  std::uint64_t free_blocks = 1 << 20;
  bool fired() const { return fired_; }

  int stat(const char* p, struct stat* s) override { return fails() ? -1 : Fs::stat(p, s); }
  int lstat(const char* p, struct stat* s) override { return fails() ? -1 : Fs::lstat(p, s); }
  int open(const char* p, int f, mode_t m) override { return fails() ? -1 : Fs::open(p, f, m); }
  ssize_t write(int fd, const void* s, std::size_t n) override {
    return fails() ? -1 : Fs::write(fd, s, n);
  }
  int fsync(int fd) override { return fails() ? -1 : Fs::fsync(fd); }
  int rename(const char* a, const char* b) override { return fails() ? -1 : Fs::rename(a, b); }
  int rename_new(const char* a, const char* b) override {
    return fails() ? -1 : Fs::rename_new(a, b);
  }
  int mkdir(const char* p, mode_t m) override { return fails() ? -1 : Fs::mkdir(p, m); }
  int statvfs(const char* p, struct statvfs* s) override {
    if (fails()) return -1;
    const int r = Fs::statvfs(p, s);
    s->f_bavail = free_blocks;
    s->f_frsize = 1024;
    return r;
  }

 private:
  bool fails() {
    if (++calls_ != n_) return false;
    fired_ = true;
    errno = ENOSPC;
    return true;
  }
  int n_, calls_ = 0;
  bool fired_ = false;
};

void write_two(const std::string& target) {
  StagedOutput out(target, StagedOutput::Kind::Folder, 1000);
  write_file_durably(out.file("a"), "one");
  write_file_durably(out.file("b"), "two");
  write_file_durably(out.file("sub/c"), "three");
  out.commit();
}

}  // namespace

TEST_CASE("a folder and a file appear at commit, under their name, with nothing beside them") {
  ScratchFolder scratch;
  write_two(scratch.file("model/"));
  CHECK(slurp(scratch.file("model/a")) == "one");
  CHECK(slurp(scratch.file("model/b")) == "two");
  CHECK(slurp(scratch.file("model/sub/c")) == "three");
  {
    StagedOutput out(scratch.file("m.gguf"), StagedOutput::Kind::File, 0);
    write_file_durably(out.file("any"), "content");
    CHECK(out.path().ends_with("/m.gguf"));  // as its readers will know it
    CHECK(!std::filesystem::exists(scratch.file("m.gguf")));
    out.commit();
  }
  CHECK(slurp(scratch.file("m.gguf")) == "content");
  CHECK(scratch.names().size() == 2);
}

TEST_CASE("without commit nothing stays; what exists is refused, also if it comes in between") {
  ScratchFolder scratch;
  {
    StagedOutput out(scratch.file("model"), StagedOutput::Kind::Folder, 0);
    write_file_durably(out.file("a"), "one");
  }
  CHECK(scratch.names().empty());
  scratch.write("there", "old");
  std::filesystem::create_directory(scratch.file("empty"));
  std::filesystem::create_symlink("nowhere", scratch.file("link"));
  for (const char* name : {"there", "empty", "link", "empty/"})
    check_throws<UsageError>(name, {"exists already"}, [&] {
      StagedOutput(scratch.file(name), StagedOutput::Kind::Folder, 0);
    });
  check_throws<UsageError>(
      "dot", {"no name"}, [&] { StagedOutput(scratch.file(".."), StagedOutput::Kind::Folder, 0); });
  check_throws<IoError>("no parent", {"none"}, [&] {
    StagedOutput(scratch.file("none/model"), StagedOutput::Kind::Folder, 0);
  });
  {
    StagedOutput out(scratch.file("late"), StagedOutput::Kind::File, 0);
    write_file_durably(out.file("late"), "new");
    scratch.write("late", "theirs");
    check_throws<UsageError>("came in between", {"exists already"}, [&] { out.commit(); });
  }
  CHECK(slurp(scratch.file("late")) == "theirs");
  CHECK(scratch.names().size() == 4);
}

TEST_CASE(
    "a second writer of one target is refused before its work; a killed one's place is taken") {
  ScratchFolder scratch;
  const std::string target = scratch.file("p.jsonl");
  {
    StagedOutput first(target, StagedOutput::Kind::File, 0);
    write_file_durably(first.file("p"), "first");
    check_throws<UsageError>("second", {target, "another process is writing it"},
                             [&] { StagedOutput(target, StagedOutput::Kind::File, 0); });
    first.commit();
  }
  CHECK(slurp(target) == "first");
  std::filesystem::remove(target);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    StagedOutput killed(target, StagedOutput::Kind::File, 0);
    write_file_durably(killed.file("p"), "half");
    ::_exit(0);  // without destructors
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  REQUIRE(scratch.names().size() == 1);
  {
    StagedOutput next(target, StagedOutput::Kind::File, 0);
    write_file_durably(next.file("p"), "next");
    next.commit();
  }
  CHECK(slurp(target) == "next");
  CHECK(scratch.names().size() == 1);
}

TEST_CASE("a disk with too little room is refused before anything is made") {
  ScratchFolder scratch;
  FailingFs small(0);
  small.free_blocks = 10;  // 10 KiB
  FsOverride in_use(small);
  check_throws<IoError>("too small", {"MiB free", scratch.file("model")}, [&] {
    StagedOutput(scratch.file("model"), StagedOutput::Kind::Folder, 10 * 1024 + 1);
  });
  CHECK(scratch.names().empty());
  StagedOutput fits(scratch.file("model"), StagedOutput::Kind::Folder, 10 * 1024);
}

TEST_CASE("whichever call fails, there is the whole folder or none") {
  bool ended = false;
  for (int n = 1; n < 100 && !ended; ++n) {
    INFO("call ", n);
    ScratchFolder scratch;
    FailingFs failing(n);
    bool threw = false;
    {
      FsOverride in_use(failing);
      try {
        write_two(scratch.file("model"));
      } catch (const IoError& e) {
        threw = true;
        CHECK(std::string(e.what()).find('/') != std::string::npos);
      }
    }
    const std::vector<std::string> names = scratch.names();
    if (!names.empty()) {  // once it is in place only the last fsync can fail
      CHECK(names == std::vector<std::string>{"model"});
      CHECK(slurp(scratch.file("model/a")) + slurp(scratch.file("model/b")) +
                slurp(scratch.file("model/sub/c")) ==
            "onetwothree");
    }
    if (!threw) CHECK(names.size() == 1);
    ended = !failing.fired();
    if (ended) CHECK(!threw);
    if (ended) CHECK(n > 12);  // two files of five calls each, and what is around them
  }
  CHECK(ended);
}
