// What the kernels that multiply one to four rows with quantised weights run by run share: the parts of a
// product, and how x and w are divided.
#pragma once

#include <climits>

#include "cuda/linear_few.cuh"
#include "cuda/mma.cuh"

namespace lk {

// Columns [32 i, 32 i + 32) are a run, eight of them a chunk.
constexpr int kRun = 32, kRuns = 8, kChunk = kRun * kRuns;

template <class Format>
struct RowPart {
  Format format;
  const std::uint8_t* codes;
  std::uint32_t row_bytes;  // the same in all parts
  Matrix<__nv_bfloat16> y;
  Matrix<const __nv_bfloat16> addend;  // addend.data may be null: zero
  int begin, end;                      // its rows, counted over all parts
};
template <class Format>
struct RowParts {
  RowPart<Format> part[kMostFewParts];
  int tiles;                      // of kFewRows rows, of all parts
  int first_tile[kMostFewParts];  // of a part that there isn't: INT_MAX

  __device__ __forceinline__ const RowPart<Format>& of(int tile) const {
    static_assert(kMostFewParts == 3);
    return part[(tile >= first_tile[1]) + (tile >= first_tile[2])];
  }
};

// A stage: neighbouring chunks of 16 rows, each row from an address that is a multiple of 16. Rows lie so far apart that
// what eight of them have in the same place, words or pairs of words, lies in different banks. As many warps as there are
// chunks copy it.
template <class Format, int CHUNKS = 1>
struct RowStage {
  static constexpr bool kShifted = Format::kBytes % 16 != 0;  // chunks begin anywhere
  static constexpr int kThreads = 32 * CHUNKS;
  static constexpr int kNeeded =
      (CHUNKS * static_cast<int>(Format::kBytes) + (kShifted ? 30 : 15)) / 16;
  static constexpr int kPieces = Format::kWords == 1 ? kNeeded | 1 : (kNeeded + 1) / 4 * 4 + 2;
  static_assert(kPieces >= kNeeded);
  static constexpr int kPitch = kPieces * 16, kBytes = kFewRows * kPitch;
  static constexpr int kCopies = (kFewRows * kPieces + kThreads - 1) / kThreads;  // of a thread
};

// A thread's part of copying chunks into stages: pieces thread, thread + kThreads, ... of each. What lies behind a row or the
// matrix may be anything, as x is zero there or nobody wants y: the matrix's last piece is read instead.
template <class Format, int CHUNKS = 1>
struct StageCopy {
  using Stage = RowStage<Format, CHUNKS>;
  static constexpr int kThreads = Stage::kThreads;
  std::uint32_t from[Stage::kCopies];

  // begin_of(r): the byte at which row r of the 16 begins; whatever it likes for other r.
  template <class BeginOf>
  __device__ __forceinline__ explicit StageCopy(const BeginOf& begin_of) {
    const int thread = threadIdx.x % kThreads;
#pragma unroll
    for (int i = 0; i < Stage::kCopies; ++i) {
      const int row = (thread + kThreads * i) / Stage::kPieces,
                piece = (thread + kThreads * i) % Stage::kPieces;
      from[i] = begin_of(row) + (Stage::kShifted ? 0 : min(piece, Stage::kNeeded - 1) * 16);
    }
  }
  // `stage`: a shared address; `skipped`: bytes of `codes` before those rows' chunks; `last`: where the matrix's
  // last piece begins.
  __device__ __forceinline__ void operator()(std::uint32_t stage, const std::uint8_t* codes,
                                             std::uint32_t skipped, std::uint32_t last) const {
    const int thread = threadIdx.x % kThreads;
    const std::uint32_t to = stage + thread * 16;
#pragma unroll
    for (int i = 0; i < Stage::kCopies; ++i) {
      std::uint32_t at = from[i] + skipped;
      if constexpr (Stage::kShifted)
        at = (at & ~15u) + min((thread + kThreads * i) % Stage::kPieces, Stage::kNeeded - 1) * 16;
      if ((i + 1) * kThreads <= kFewRows * Stage::kPieces ||
          thread + kThreads * i < kFewRows * Stage::kPieces)
        copy_async_16(to + 16 * kThreads * i, codes + min(at, last), true);
    }
  }
};

// Fills `all` with the parts, which have one format, which Format reads. False if their codes do not lie as
// these kernels read them: not at a multiple of 16 bytes (rows neither, where chunks do not begin anywhere), or 4 GiB of them.
template <class Format>
bool row_parts(const Tensor& x, std::span<const LinearPart> parts, RowParts<Format>& all) {
  all = {.part = {}, .tiles = 0, .first_tile = {0, INT_MAX, INT_MAX}};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const QuantisedMatrix& q = *parts[i].w->quantised();
    const PlaneShape codes = q.format.plane(Plane::Codes, parts[i].w->shape());
    const int n = static_cast<int>(parts[i].w->shape()[0]), begin = all.tiles * kFewRows;
    const bool whole = reinterpret_cast<std::uintptr_t>(q.plane<void>(Plane::Codes)) % 16 == 0 &&
                       (RowStage<Format>::kShifted || codes.cols % 16 == 0);
    if (!whole || codes.bytes() > UINT32_MAX - 4096) return false;
    all.first_tile[i] = all.tiles;
    RowPart<Format>& part = all.part[i];
    part = {Format::of(q, x.cols()),
            q.plane<std::uint8_t>(Plane::Codes),
            static_cast<std::uint32_t>(codes.cols),
            matrix<bf16>(parts[i].y),
            {},
            begin,
            begin + n};
    if (parts[i].addend) part.addend = const_matrix<bf16>(parts[i].addend);
    all.tiles += static_cast<int>(ceil_div(n, kFewRows));
  }
  return true;
}

// A lane's eight columns of a run of x: 4t to 4t+3 and 16+4t to 16+4t+3 where HALVES, else 8t to 8t+7.
template <bool HALVES>
__device__ __forceinline__ uint4 run_of_x(const __nv_bfloat16* run, int t) {
  if constexpr (HALVES) {
    const uint2 a = *reinterpret_cast<const uint2*>(run + 4 * t),
                b = *reinterpret_cast<const uint2*>(run + 16 + 4 * t);
    return {a.x, a.y, b.x, b.y};
  }
  return *reinterpret_cast<const uint4*>(run + 8 * t);
}

// The same in the background, into 16 bytes of shared memory.
template <bool HALVES>
__device__ __forceinline__ void copy_run_of_x(std::uint32_t to, const __nv_bfloat16* run, int t) {
  if constexpr (HALVES) {
    copy_async_8(to, run + 4 * t);
    copy_async_8(to + 8, run + 16 + 4 * t);
  } else {
    copy_async_16(to, run + 8 * t, true);
  }
}

// Writes what run_of_x() reads.
template <bool HALVES>
__device__ __forceinline__ void put_run(__nv_bfloat16* run, int t, const uint4& v) {
  if constexpr (HALVES) {
    *reinterpret_cast<uint2*>(run + 4 * t) = {v.x, v.y};
    *reinterpret_cast<uint2*>(run + 16 + 4 * t) = {v.z, v.w};
  } else {
    *reinterpret_cast<uint4*>(run + 8 * t) = v;
  }
}

}  // namespace lk
