// Durable writes: fail the first system call, then the second, and so on until none fails; each
// once and permanently; with every error that a disk gives. After each failure there must be the
// old file or the new one, complete, and no leftovers.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <string>

#include "harness.h"
#include "hostile.h"
#include "io/durable.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/output_folder.h"
#include "io/paths.h"
#include "io/safetensors.h"
#include "io/staged_output.h"

using namespace lk;
using namespace lk::test;

namespace {

// What a failing call does.
enum class Fault { Error, ShortWrite, LyingWrite };

// The system, with the n-th call (and, if persistent, each later one) failing.
class FaultyFs : public Fs {
 public:
  FaultyFs(int n, int error, bool persistent, Fault fault = Fault::Error)
      : n_(n), error_(error), persistent_(persistent), fault_(fault) {}
  bool fired() const { return fired_; }
  int open_files() const { return open_files_; }

  int open(const char* path, int flags, mode_t mode) override {
    if (fails()) return -1;
    int fd = Fs::open(path, flags, mode);
    open_files_ += fd >= 0;
    return fd;
  }
  int close(int fd) override {  // Linux closes it whatever it returns
    --open_files_;
    int r = Fs::close(fd);
    return fails() ? -1 : r;
  }
  int fstat(int fd, struct stat* out) override { return fails() ? -1 : Fs::fstat(fd, out); }
  int stat(const char* path, struct stat* out) override {
    return fails() ? -1 : Fs::stat(path, out);
  }
  int lstat(const char* path, struct stat* out) override {
    return fails() ? -1 : Fs::lstat(path, out);
  }
  int list(const char* folder, std::vector<std::string>& names) override {
    return fails() ? -1 : Fs::list(folder, names);
  }
  ssize_t pread(int fd, void* dst, std::size_t bytes, off_t at) override {
    return fails() ? -1 : Fs::pread(fd, dst, bytes, at);
  }
  ssize_t write(int fd, const void* src, std::size_t bytes) override {
    if (fault_ == Fault::Error) return fails() ? -1 : Fs::write(fd, src, bytes);
    if (!due()) return Fs::write(fd, src, bytes);
    const std::size_t some = (bytes + 1) / 2;
    ssize_t n = Fs::write(fd, src, some);
    return fault_ == Fault::LyingWrite && n >= 0 ? static_cast<ssize_t>(bytes) : n;
  }
  int fsync(int fd) override { return fails() ? -1 : Fs::fsync(fd); }
  int rename(const char* a, const char* b) override { return fails() ? -1 : Fs::rename(a, b); }

 private:
  bool due() {
    ++calls_;
    bool now = calls_ == n_ || (persistent_ && calls_ > n_);
    fired_ = fired_ || now;
    return now;
  }
  bool fails() {
    if (fault_ != Fault::Error || !due()) return false;
    errno = error_;
    return true;
  }

  int n_, error_;
  bool persistent_;
  Fault fault_;
  int calls_ = 0, open_files_ = 0;
  bool fired_ = false;
};

// Runs `operation` with call 1, 2, 3, ... failing, until it succeeds without the fault firing.
// `verify(threw)` sees the file system after each round.
void fail_every_call(int error, bool persistent, Fault fault,
                     const std::function<void()>& operation,
                     const std::function<void(bool threw)>& verify) {
  for (int n = 1; n < 200; ++n) {
    FaultyFs faulty(n, error, persistent, fault);
    bool threw = false;
    INFO("call ", n, " error ", error, persistent ? " for good" : " once");
    {
      FsOverride in_use(faulty);
      try {
        operation();
      } catch (const IoError& e) {
        threw = true;
        CHECK(std::string(e.what()).find('/') != std::string::npos);  // names the file
      } catch (const std::exception& e) {
        threw = true;
        FAIL_CHECK("not an IoError: ", std::string(e.what()));
      }
    }
    CHECK(faulty.open_files() == 0);
    verify(threw);
    if (!faulty.fired()) {
      CHECK(!threw);
      return;
    }
  }
  FAIL_CHECK("never came to an end");
}

}  // namespace

TEST_CASE("durable write: replaces, creates, leaves no litter") {
  ScratchFolder folder;
  const std::string path = folder.write("f", "old");
  write_file_durably(path, "new");
  CHECK(slurp(path) == "new");
  write_file_durably(path, "");
  CHECK(slurp(path).empty());
  const std::string big(3'000'000, 'x');
  write_file_durably(folder.file("g"), big);
  CHECK(slurp(folder.file("g")) == big);
  CHECK(folder.names().size() == 2);
  check_throws<IoError>("no folder", {"none/f", "No such file"},
                        [&] { write_file_durably(folder.file("none/f"), "x"); });
  std::filesystem::create_directory(folder.file("d"));
  check_throws<IoError>("a folder of that name", {folder.file("d")},
                        [&] { write_file_durably(folder.file("d"), "x"); });
  CHECK(folder.names().size() == 3);
}

TEST_CASE("durable write: without commit nothing happens") {
  ScratchFolder folder;
  const std::string path = folder.write("f", "old");
  {
    DurableFile f(path);
    f.append("new", 3);
    CHECK(folder.names().size() == 2);
  }
  CHECK(slurp(path) == "old");
  CHECK(folder.names().size() == 1);
}

TEST_CASE("R5: durable write with each call failing") {
  ScratchFolder folder;
  const std::string path = folder.file("f"), fresh(100'000, 'n');
  for (int error : {ENOSPC, EIO, EDQUOT, EROFS, EMFILE})
    for (bool persistent : {false, true}) {
      folder.write("f", "old");
      bool in_place = false;
      fail_every_call(
          error, persistent, Fault::Error, [&] { write_file_durably(path, fresh); },
          [&](bool threw) {
            const std::string now = slurp(path);
            CHECK((now == "old" || now == fresh));  // never a mixture
            // After the rename only the folder's fsync can fail: the new file is then in place, and
            // the error says so.
            if (!threw) CHECK(now == fresh);
            in_place = in_place || now == fresh;
            CHECK(folder.names().size() == 1);
            folder.write("f", "old");
          });
      CHECK(in_place);
    }
}

TEST_CASE("R5: interrupted calls and short writes are carried on, not errors") {
  ScratchFolder folder;
  const std::string path = folder.file("f"), fresh(100'000, 'n');
  auto verify = [&](bool threw) {
    CHECK(!threw);
    CHECK(slurp(path) == fresh);
    CHECK(folder.names().size() == 1);
    std::filesystem::remove(path);
  };
  auto write = [&] { write_file_durably(path, fresh); };
  fail_every_call(0, false, Fault::ShortWrite, write, verify);
  fail_every_call(0, true, Fault::ShortWrite, write, verify);
  // fstat and rename do not give EINTR on Linux; all others may.
  class Interrupted : public Fs {
   public:
    int open(const char* p, int f, mode_t m) override { return twice() ? -1 : Fs::open(p, f, m); }
    ssize_t pread(int fd, void* d, std::size_t n, off_t at) override {
      return twice() ? -1 : Fs::pread(fd, d, n, at);
    }
    ssize_t write(int fd, const void* s, std::size_t n) override {
      return twice() ? -1 : Fs::write(fd, s, n);
    }
    int fsync(int fd) override { return twice() ? -1 : Fs::fsync(fd); }

   private:
    bool twice() {
      errno = EINTR;
      return ++calls_ % 3 != 0;
    }
    int calls_ = 0;
  } interrupted;
  FsOverride in_use(interrupted);
  write();
  CHECK(slurp(path) == fresh);
}

TEST_CASE("R6: a write that lies is caught before the rename") {
  ScratchFolder folder;
  const std::string path = folder.write("f", "old");
  for (bool persistent : {false, true}) {
    FaultyFs lying(1, 0, persistent, Fault::LyingWrite);
    FsOverride in_use(lying);
    check_throws<IoError>("short", {path, "read back"},
                          [&] { write_file_durably(path, std::string(1000, 'n')); });
  }
  class Flipping : public Fs {
    ssize_t write(int fd, const void* src, std::size_t n) override {
      std::string copy(static_cast<const char*>(src), n);
      copy[n / 2] ^= 1;
      return Fs::write(fd, copy.data(), n);
    }
  } flipping;
  FsOverride in_use(flipping);
  check_throws<IoError>("a flipped bit", {path, "reads back"},
                        [&] { write_file_durably(path, "new"); });
  CHECK(slurp(path) == "old");
  CHECK(folder.names().size() == 1);
}

TEST_CASE("R5: write_safetensors with each call failing") {
  ScratchFolder folder;
  const std::string path = folder.file("w");
  std::vector<SafetensorsEntry> one = {{"x", {2}, {1, 2}}}, other = {{"x", {2}, {3, 4}}};
  write_safetensors(path, one, {});
  fail_every_call(
      ENOSPC, false, Fault::Error,
      [&] {
        write_safetensors(path, other, {{"format", "pt"}});
      },
      [&](bool threw) {
        SafetensorsFile f(path);
        float x[2];
        f.read_rows("x", 0, 1, x);
        CHECK((x[0] == 1 || x[0] == 3));
        if (!threw) CHECK(x[0] == 3);
        CHECK(folder.names().size() == 1);
        write_safetensors(path, one, {});
      });
}

TEST_CASE("reading with each call failing: IoError, nothing left open") {
  ScratchFolder folder;
  const std::string json = folder.write("a.json", "{\"a\":1}"),
                    weights = folder.write("w", good_safetensors());
  for (int error : {EIO, EMFILE, ENOMEM}) {
    fail_every_call(
        error, false, Fault::Error, [&] { read_json(json); }, [](bool) {});
    fail_every_call(
        error, true, Fault::Error,
        [&] {
          SafetensorsFile f(weights);
          float v[4];
          f.read_rows("b", 0, 2, v);
        },
        [](bool) {});
  }
}

TEST_CASE("the file-size limit fails the write, not the process (SIGXFSZ)") {
  ScratchFolder folder;
  const std::string path = folder.write("f", "old");
  pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {  // a process of its own: the limit is permanent
    rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_DFL);
    int status = 1;
    try {
      write_file_durably(path, std::string(5000, 'n'));
    } catch (const IoError&) {
      status = 0;
    } catch (...) {
    }
    ::_exit(status);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(slurp(path) == "old");
  CHECK(folder.names().size() == 1);
}

TEST_CASE("line log: refuses devices") {
  check_throws<IoError>("log", {"/dev/full"}, [] { LineLog log("/dev/full"); });
}

TEST_CASE("input file: limits") {
  ScratchFolder folder;
  const std::string path = folder.write("f", "0123456789");
  InputFile f(path);
  char c[4];
  CHECK(f.size() == 10);
  f.read(6, c, 4);
  CHECK(std::string(c, 4) == "6789");
  f.read(10, c, 0);
  check_throws<InputError>("beyond", {path, "byte 7", "ends at 10"}, [&] { f.read(7, c, 4); });
  check_throws<InputError>("far beyond", {path}, [&] { f.read(UINT64_MAX, c, 4); });
  CHECK(read_file(path, 10) == "0123456789");
  check_throws<InputError>("limit", {path, "10 bytes", "9"}, [&] { read_file(path, 9); });
  if (::geteuid() != 0) {
    std::filesystem::permissions(path, std::filesystem::perms::none);
    check_throws<InputError>("not allowed", {path, "Permission denied"},
                             [&] { InputFile g(path); });
  }
}

TEST_CASE("a file cut short between two reads of one pread loop") {
  ScratchFolder folder;
  const std::string path = folder.write("f", std::string(1000, 'x'));
  class Cutting : public Fs {  // as if another process truncated the file meanwhile
    ssize_t pread(int fd, void* dst, std::size_t n, off_t at) override {
      return at == 0 ? Fs::pread(fd, dst, std::min<std::size_t>(n, 10), at) : 0;
    }
  } cutting;
  FsOverride in_use(cutting);
  check_throws<InputError>("cut", {path, "byte 10", "cut short"}, [&] { read_file(path, 1000); });
}

TEST_CASE("line log: whole lines, appended") {
  ScratchFolder folder;
  const std::string path = folder.write("log", "before\n");
  {
    LineLog log(path);
    log.append("one");
    log.append("");
    log.flush();
    log.append("two");
  }
  CHECK(slurp(path) == "before\none\n\ntwo\n");
  check_throws<IoError>("no folder", {"none/log"}, [&] { LineLog log(folder.file("none/log")); });
  check_throws<IoError>("folder", {folder.path()}, [&] { LineLog log(folder.path()); });
}

TEST_CASE("line log: a line that does not fit is taken back, and comes before the next one") {
  ScratchFolder folder;
  const std::string path = folder.write("log", "one\n");
  LineLog log(path);
  class Filling : public Fs {  // takes three bytes, then the disk is full
    ssize_t write(int fd, const void* src, std::size_t n) override {
      if (std::exchange(full_, true)) return errno = ENOSPC, -1;
      return Fs::write(fd, src, std::min<std::size_t>(n, 3));
    }
    bool full_ = false;
  } filling;
  {
    FsOverride in_use(filling);
    check_throws<IoError>("full", {path, "No space"}, [&] { log.append("second line"); });
  }
  CHECK(slurp(path) == "one\n");
  log.append("three");
  CHECK(slurp(path) == "one\nsecond line\nthree\n");
  {
    FsOverride in_use(filling);
    CHECK_THROWS_AS(log.append("four"), IoError);
  }
  log.flush();
  CHECK(slurp(path) == "one\nsecond line\nthree\nfour\n");
}

TEST_CASE("R8: output folder: new, empty, or refused; and one process at a time") {
  ScratchFolder root;
  const std::string path = root.file("a/b/run");
  {
    OutputFolder out(path, true);
    CHECK(out.file("x") == path + "/x");
    CHECK(std::filesystem::is_directory(path));
    CHECK(slurp(path + "/.lock") == std::to_string(::getpid()) + "\n");
    check_throws<UsageError>("held", {path, "process " + std::to_string(::getpid())},
                             [&] { OutputFolder again(path, true); });
    check_throws<UsageError>("held, resuming", {path, "process"},
                             [&] { OutputFolder again(path, false); });
  }
  CHECK(!std::filesystem::exists(path));  // nothing was written to it: it goes with its holder
  std::filesystem::create_directories(path);
  { OutputFolder out(path, true); }
  CHECK(std::filesystem::is_empty(path));  // the lock alone disappears
  { OutputFolder again(path + "/", true); }
  std::filesystem::create_directories(path);
  std::ofstream(path + "/.lock") << "999999\n";  // left by a killed run: harmless
  { OutputFolder again(path, true); }
  std::ofstream(path + "/metrics.jsonl") << "x";
  check_throws<UsageError>("not empty", {path, "metrics.jsonl"},
                           [&] { OutputFolder again(path, true); });
  CHECK(!std::filesystem::exists(path + "/.lock"));
  { OutputFolder again(path, false); }
  check_throws<UsageError>("a file", {path + "/metrics.jsonl"},
                           [&] { OutputFolder f(path + "/metrics.jsonl", false); });
  check_throws<Error>("under a file", {"metrics.jsonl/x"},
                      [&] { OutputFolder f(path + "/metrics.jsonl/x", false); });
  CHECK_THROWS_AS(OutputFolder("", true), UsageError);
}

TEST_CASE("only ENOENT and ENOTDIR mean that nothing is there") {
  ScratchFolder root;
  const std::string path = root.write("f", "four");
  std::filesystem::create_symlink("nowhere", root.file("dangling"));
  CHECK(lk::exists(path));
  CHECK(!is_folder(path));
  CHECK(is_folder(root.file("")));
  CHECK(file_bytes(path) == 4);
  CHECK(!lk::exists(root.file("absent")));
  CHECK(!lk::exists(path + "/under-a-file"));
  // Somebody meant a file to be where a link leads, so it is not simply absent.
  const std::string dangling = root.file("dangling");
  check_throws<InputError>("a link", {dangling, "link to nothing"}, [&] { lk::exists(dangling); });
  check_throws<InputError>("a link", {dangling}, [&] { is_folder(dangling); });
  check_throws<InputError>("a link", {dangling}, [&] { file_bytes(dangling); });
  CHECK(is_taken(dangling));
  CHECK(is_link(dangling));
  CHECK(!is_link(path));
  CHECK(is_same(path, root.file("../") + root.path().substr(root.path().rfind('/') + 1) + "/f"));
  CHECK(!is_same(path, root.path()));
  CHECK(!is_same(path, root.file("absent")));
  CHECK(file_bytes(root.file("absent")) == 0);
  CHECK(list_folder(root.file("")) == std::vector<std::string>{"dangling", "f"});
  CHECK(file_name("a/b.gguf") == "b.gguf");
  CHECK(parent_folder("a/b.gguf") == "a");
  CHECK(parent_folder("b.gguf") == ".");
  for (const char* name : {"a/tiny", "a/tiny/", "tiny/.", "tiny"})
    CHECK(folder_name(name) == "tiny");
  const std::string own = root.file("loop");
  std::filesystem::create_symlink("loop", own);
  for (const std::string& looped : {own, own + "/config.json"})
    check_throws<InputError>("a loop", {looped, "in a circle"}, [&] { lk::exists(looped); });
  for (int error : {EIO, EACCES, ENOMEM, ESTALE}) {
    FaultyFs faulty(1, error, true);
    FsOverride in_use(faulty);
    check_throws<IoError>("exists", {path, "cannot examine"}, [&] { lk::exists(path); });
    check_throws<IoError>("is_taken", {path, "cannot examine"}, [&] { is_taken(path); });
    check_throws<IoError>("is_folder", {path, "cannot examine"}, [&] { is_folder(path); });
    check_throws<IoError>("is_link", {path, "cannot examine"}, [&] { is_link(path); });
    check_throws<IoError>("is_pipe", {path, "cannot examine"}, [&] { is_pipe(path); });
    check_throws<IoError>("is_same", {path, "cannot examine"}, [&] { is_same(path, path); });
    check_throws<IoError>("file_bytes", {path, "cannot examine"}, [&] { file_bytes(path); });
    check_throws<IoError>("list", {path, "cannot list"}, [&] { list_folder(path); });
  }
}

TEST_CASE("R8: an output folder may be a link to a folder, and no path makes it loop for ever") {
  ScratchFolder root;
  const std::string link = root.file("link"), real = root.file("real");
  std::filesystem::create_directory(real);
  std::ofstream(root.file("plain")) << "x";
  for (const char* to : {"/nowhere/at/all", "plain", "link"}) {
    std::filesystem::remove(link);
    std::filesystem::create_symlink(to, link);
    for (const std::string& path : {link, link + "/"})
      check_throws<UsageError>(to, {link, "is a link"}, [&] { OutputFolder(path, true); });
    CHECK_THROWS_AS(OutputFolder(link + "/below", true), Error);  // under a link to nothing
  }
  std::filesystem::remove(link);
  std::filesystem::create_symlink("real", link);
  for (const std::string& path : {link, link + "/"}) {
    const OutputFolder folder(path, true);
    CHECK(folder.file("x") == std::filesystem::canonical(real).string() + "/x");
    CHECK(std::filesystem::exists(root.file("real/.lock")));
  }
  CHECK(std::filesystem::is_empty(real));

  class Blind : public Fs {  // finds nothing, whatever is there
    int stat(const char*, struct stat*) override { return errno = ENOENT, -1; }
    int lstat(const char*, struct stat*) override { return errno = ENOENT, -1; }
  } blind;
  FsOverride in_use(blind);
  CHECK_NOTHROW(OutputFolder(root.file("a/b"), true));
  class Refusing : public Fs {
    int stat(const char*, struct stat*) override { return errno = ENOENT, -1; }
    int lstat(const char*, struct stat*) override { return errno = ENOENT, -1; }
    int mkdir(const char*, mode_t) override { return errno = EROFS, -1; }
  } refusing;
  FsOverride also(refusing);
  CHECK_THROWS_AS(OutputFolder(root.file("a/c"), true), IoError);
}

TEST_CASE("temporary files of killed processes are removed, those of living ones are not") {
  ScratchFolder root;
  const std::string path = root.file("run");
  std::filesystem::create_directory(path);
  const std::string dead = path + "/.weights.1234-0.lorikeet.tmp",
                    folder = path + "/.m.lorikeet.tmp";
  std::ofstream(dead) << "half";
  std::filesystem::create_directory(folder);
  std::ofstream(folder + "/part") << "half";
  std::filesystem::create_directory(folder + "/sub");
  std::ofstream(folder + "/sub/part") << "half";
  std::ofstream(path + "/.other.tmp") << "another program's";
  DurableFile alive(path + "/file");
  alive.append("whole", 5);
  const StagedOutput staged(path + "/m2", StagedOutput::Kind::Folder, 0);  // removes what is dead
  CHECK(!std::filesystem::exists(dead));
  CHECK(!std::filesystem::exists(folder));
  std::ofstream(dead) << "half";
  { const OutputFolder out(path, false); }
  CHECK(!std::filesystem::exists(dead));
  alive.commit();
  CHECK(slurp(path + "/file") == "whole");
  CHECK(slurp(path + "/.other.tmp") == "another program's");
  CHECK(std::filesystem::is_directory(staged.path()));
}

TEST_CASE("a name as long as a file system takes has room for its temporary one") {
  ScratchFolder root;
  const std::string path = root.file(std::string(255, 'n'));
  write_file_durably(path, "x");
  CHECK(slurp(path) == "x");
}

TEST_CASE("R8: whichever call fails, an output folder is had or an IoError names it") {
  for (int error : {EIO, ENOSPC}) {
    ScratchFolder root;
    fail_every_call(
        error, true, Fault::Error, [&] { OutputFolder out(root.file("a/run"), true); },
        [](bool) {});
  }
}

TEST_CASE("R8: a lock of a killed process is free") {
  ScratchFolder root;
  const std::string path = root.file("run");
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    OutputFolder out(path, true);
    (void)!::write(ready[1], "x", 1);
    ::pause();
    ::_exit(0);
  }
  char c;
  REQUIRE(::read(ready[0], &c, 1) == 1);
  check_throws<UsageError>("held", {path, "process " + std::to_string(child)},
                           [&] { OutputFolder out(path, true); });
  ::kill(child, SIGKILL);
  int status;
  ::waitpid(child, &status, 0);
  CHECK_NOTHROW(OutputFolder(path, true));
  ::close(ready[0]);
  ::close(ready[1]);
}
