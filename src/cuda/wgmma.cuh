// Hopper's own tensor-core instructions for BF16, wgmma: a warpgroup (four warps) multiplies 64
// rows at a time, in the background, and reads its operands from shared memory by descriptor. Only
// code for sm_90a may contain them; attention.cu chooses at run time.
//
// Operands (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"):
//   accumulator   64 x 8 NT; warp w of the group holds rows [16 w, 16 w + 16) as NT C tiles of
//                 mma.cuh
//   A, registers  the same warp's A fragment of mma.cuh: pack_a makes it from two C tiles
//   A, B, shared  PanelTile below; a tile (n, k), k contiguous, is B = tileᵀ; a tile (k, n), n
//                 contiguous, is B = tile and read transposed
//
// Note [Order of wgmma]. Registers of a product that was issued must not be touched until
// wgmma_wait says that it is done, and the compiler doesn't know this: hold() its accumulator
// before the first use. wgmma_fence() comes between the last ordinary write of an accumulator or A
// fragment and the product. For wgmma to see shared memory written by copy_async, the writing
// thread waits for its copies, calls fence_async_proxy(), and meets the others at a barrier.
#pragma once

#include "cuda/mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LK_DEVICE_HAS_WGMMA 1
#endif

namespace lk {

inline constexpr int kWarpgroup = 128;  // threads

// The warpgroup that this thread belongs to, known to be the same in all of a warp.
__device__ __forceinline__ int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
}

// COLS / 64 panels, one after the other, of ROWS x 64 bf16: a row of a panel is 128 bytes, swizzled
// as in SwizzledTile, which is wgmma's "128-byte swizzle". `base` is a multiple of 1024.
template <int ROWS, int COLS>
struct PanelTile {
  static_assert(ROWS % 8 == 0 && COLS % 64 == 0);
  static constexpr std::uint32_t kRowBytes = 128, kPanelBytes = ROWS * kRowBytes,
                                 kBytes = COLS / 64 * kPanelBytes;
  std::uint32_t base;

  __device__ __forceinline__ SwizzledTile<64> panel(int i) const {
    return {base + i * kPanelBytes};
  }

  // Starts copying rows [0, valid_rows) x columns [0, valid_cols) (a multiple of 8) of a matrix; the
  // rest of the tile is zeroed.
  template <int THREADS>
  __device__ __forceinline__ void load_async(const __nv_bfloat16* from, i64 ld, int valid_rows,
                                             int valid_cols = COLS) const {
    constexpr int kPass = THREADS / 8;  // rows that the block copies at a time
    static_assert(kPass % 8 == 0 && ROWS % kPass == 0);
    unsigned thread = threadIdx.x % THREADS;
    asm volatile("" : "+l"(ld), "+r"(thread));  // addresses are computed here, not kept in a loop
    int row = thread / 8, chunk = thread % 8;
    std::uint32_t to = panel(0).at(row, chunk);
    const __nv_bfloat16* source = from + row * ld + chunk * 8;
#pragma unroll
    for (int n = 0; n < ROWS / kPass; ++n) {
      bool valid_row = row + n * kPass < valid_rows;
      const __nv_bfloat16* at = valid_row ? source : from;
#pragma unroll
      for (int i = 0; i < COLS / 64; ++i)
        copy_async_16(to + i * kPanelBytes + n * kPass * kRowBytes, at + 64 * i,
                      valid_row && 64 * i + chunk * 8 < valid_cols);
      source += kPass * ld;
    }
  }

  // A matrix descriptor: addresses and distances are in units of 16 bytes; bits 62..63 = 1 choose
  // the 128-byte swizzle. The swizzle applies to address bits, so a start inside a 1024-byte block
  // is fine. It has room for 18 bits of an address; in a cluster, higher ones name the block.
  static __device__ __forceinline__ std::uint64_t descriptor(std::uint32_t address,
                                                             std::uint32_t leading_bytes) {
    constexpr std::uint64_t kStride = 8 * kRowBytes / 16;  // from eight rows to the next eight rows
    return (address & 0x3ffff) >> 4 | static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
           kStride << 32 | std::uint64_t{1} << 62;
  }
  // Rows from `row` (a multiple of 8) on, columns [16 step, 16 step + 16): A, or B = tileᵀ. The
  // leading distance is unused here.
  __device__ __forceinline__ std::uint64_t rows_from(int row, int step) const {
    return descriptor(base + step / 4 * kPanelBytes + row * kRowBytes + step % 4 * 32, 16);
  }
  // Rows [16 step, 16 step + 16), all columns: B = tile. The leading distance is from one panel to
  // the next.
  __device__ __forceinline__ std::uint64_t block_of_rows(int step) const {
    return block_of_rows(step, 0, 1);
  }
  // The same of the panels `first`, first + stride, ... alone.
  __device__ __forceinline__ std::uint64_t block_of_rows(int step, int first, int stride) const {
    return descriptor(base + first * kPanelBytes + step * 16 * kRowBytes, stride * kPanelBytes);
  }
};

__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

#ifdef LK_DEVICE_HAS_WGMMA

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most `LEFT` of the newest committed groups are still running.
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(LEFT) : "memory");
}
// Keeps the compiler from moving uses of c across this point.
template <int NT>
__device__ __forceinline__ void hold(float (&c)[NT][4]) {
#pragma unroll
  for (int i = 0; i < NT; ++i)
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}

// Note [Products in a row]. If an ordinary instruction seems to write or read an accumulator
// between running products, the compiler waits after each product (its remarks are C7514 and C7515;
// look for them after every change). So an accumulator that is overwritten is not an input here,
// and a sum that stays in flight from one turn of a loop to the next does not begin as zeros but as
// undefined(), and its first product overwrites it.
template <int NT>
__device__ __forceinline__ void undefined(float (&c)[NT][4]) {
#pragma unroll
  for (int i = 0; i < NT; ++i)
    asm volatile("" : "=f"(c[i][0]), "=f"(c[i][1]), "=f"(c[i][2]), "=f"(c[i][3]));
}

// The instruction with 4, 8, 16 and 32 C tiles: names of the accumulator's registers, and their operands.
#define LK_C1(how, c, i) how(c[i][0]), how(c[i][1]), how(c[i][2]), how(c[i][3])
#define LK_C4(how, c, i) \
  LK_C1(how, c, i), LK_C1(how, c, i + 1), LK_C1(how, c, i + 2), LK_C1(how, c, i + 3)
#define LK_C8(how, c) LK_C4(how, c, 0), LK_C4(how, c, 4)
#define LK_C16(how, c) LK_C8(how, c), LK_C4(how, c, 8), LK_C4(how, c, 12)
#define LK_C32(how, c) \
  LK_C16(how, c), LK_C4(how, c, 16), LK_C4(how, c, 20), LK_C4(how, c, 24), LK_C4(how, c, 28)
#define LK_R16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define LK_R32                                                                              \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define LK_R64                                                                                   \
  LK_R32                                                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54" \
  ",%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define LK_R128                                                                                  \
  LK_R64                                                                                         \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85"     \
  ",%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106"  \
  ",%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%" \
  "125,%126,%127"
#define LK_WGMMA(n, registers, operands, add)                                           \
  "{ .reg .pred add; setp.ne.b32 add, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
  "k16.f32.bf16.bf16 " registers "}, " operands "; }\n"

// c (64, 64) = a and b, or c += them: a 64 rows, 16 columns. b is 64 rows of 16 columns, or the other
// way round if BY_ROWS.
template <bool ADD, bool BY_ROWS>
__device__ __forceinline__ void wgmma_64(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
  if constexpr (ADD)
    asm volatile(LK_WGMMA("64", LK_R32, "%32, %33, add, 1, 1, 0, %34", "1")
                 : LK_C8("+f", c)
                 : "l"(a), "l"(b), "n"(BY_ROWS));
  else
    asm volatile(LK_WGMMA("64", LK_R32, "%32, %33, add, 1, 1, 0, %34", "0")
                 : LK_C8("=f", c)
                 : "l"(a), "l"(b), "n"(BY_ROWS));
}

// c (64, 8 NT) = a bᵀ, or c += a bᵀ: a 64 rows, b 8 NT rows, 16 columns of each.
template <bool ADD>
__device__ __forceinline__ void wgmma_abt(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
  wgmma_64<ADD, false>(c, a, b);
}
template <bool ADD>
__device__ __forceinline__ void wgmma_abt(float (&c)[16][4], std::uint64_t a, std::uint64_t b) {
  if constexpr (ADD)
    asm volatile(LK_WGMMA("128", LK_R64, "%64, %65, add, 1, 1, 0, 0", "1")
                 : LK_C16("+f", c)
                 : "l"(a), "l"(b));
  else
    asm volatile(LK_WGMMA("128", LK_R64, "%64, %65, add, 1, 1, 0, 0", "0")
                 : LK_C16("=f", c)
                 : "l"(a), "l"(b));
}
// c (64, 8 NT) = a bᵀ, or c += a bᵀ, with a in registers.
template <bool ADD>
__device__ __forceinline__ void wgmma_abt(float (&c)[4][4], const Fragment4& a, std::uint64_t b) {
  if constexpr (ADD)
    asm volatile(LK_WGMMA("32", LK_R16, "{%16,%17,%18,%19}, %20, add, 1, 1, 0", "1")
                 : LK_C4("+f", c, 0)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b));
  else
    asm volatile(LK_WGMMA("32", LK_R16, "{%16,%17,%18,%19}, %20, add, 1, 1, 0", "0")
                 : LK_C4("=f", c, 0)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b));
}
template <bool ADD>
__device__ __forceinline__ void wgmma_abt(float (&c)[8][4], const Fragment4& a, std::uint64_t b) {
  if constexpr (ADD)
    asm volatile(LK_WGMMA("64", LK_R32, "{%32,%33,%34,%35}, %36, add, 1, 1, 0", "1")
                 : LK_C8("+f", c)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b));
  else
    asm volatile(LK_WGMMA("64", LK_R32, "{%32,%33,%34,%35}, %36, add, 1, 1, 0", "0")
                 : LK_C8("=f", c)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b));
}
template <bool ADD>
__device__ __forceinline__ void wgmma_abt(float (&c)[16][4], const Fragment4& a, std::uint64_t b) {
  if constexpr (ADD)
    asm volatile(LK_WGMMA("128", LK_R64, "{%64,%65,%66,%67}, %68, add, 1, 1, 0", "1")
                 : LK_C16("+f", c)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b));
  else
    asm volatile(LK_WGMMA("128", LK_R64, "{%64,%65,%66,%67}, %68, add, 1, 1, 0", "0")
                 : LK_C16("=f", c)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b));
}
// c (64, 64) = a b, or c += a b: a 64 rows, 16 columns; b (16, 64).
template <bool ADD>
__device__ __forceinline__ void wgmma_ab(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
  wgmma_64<ADD, true>(c, a, b);
}
// c (64, 8 NT) = a b, or c += a b if `add`: a in registers, b (16, 8 NT).
__device__ __forceinline__ void wgmma_ab(float (&c)[8][4], const Fragment4& a, std::uint64_t b,
                                         bool add) {
  asm volatile(LK_WGMMA("64", LK_R32, "{%32,%33,%34,%35}, %36, add, 1, 1, 1", "%37")
               : LK_C8("+f", c)
               : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b),
                 "r"(static_cast<int>(add)));
}
__device__ __forceinline__ void wgmma_ab(float (&c)[16][4], const Fragment4& a, std::uint64_t b,
                                         bool add) {
  asm volatile(LK_WGMMA("128", LK_R64, "{%64,%65,%66,%67}, %68, add, 1, 1, 1", "%69")
               : LK_C16("+f", c)
               : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b),
                 "r"(static_cast<int>(add)));
}
__device__ __forceinline__ void wgmma_ab(float (&c)[32][4], const Fragment4& a, std::uint64_t b,
                                         bool add) {
  asm volatile(LK_WGMMA("256", LK_R128, "{%128,%129,%130,%131}, %132, add, 1, 1, 1", "%133")
               : LK_C32("+f", c)
               : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b),
                 "r"(static_cast<int>(add)));
}

#undef LK_C1
#undef LK_C4
#undef LK_C8
#undef LK_C16
#undef LK_C32
#undef LK_R16
#undef LK_R32
#undef LK_R64
#undef LK_R128
#undef LK_WGMMA

// Rows [row, row + 64) of a tile as the left operand of products over its columns: kept in
// registers (read from the tile once) or left in shared memory.
template <int ROWS, int COLS, bool IN_REGISTERS>
struct LeftOperand {
  PanelTile<ROWS, COLS> tile;
  int row;
  Fragment4 fragments[IN_REGISTERS ? COLS / 16 : 1];

  __device__ __forceinline__ LeftOperand(PanelTile<ROWS, COLS> from, int first)
      : tile(from), row(first) {}
  // Call it after the tile has arrived. warp_row: the tile's row at which this warp's sixteen
  // begin.
  __device__ __forceinline__ void read(int warp_row) {
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int step = 0; step < COLS / 16; ++step)
        fragments[step] = fragment_a(tile.panel(step / 4), warp_row, step % 4);
    }
  }
  // c (64, 8 NT) = rows · bᵀ, b a tile of 8 NT rows. Issued, not waited for.
  template <int NT>
  __device__ __forceinline__ void times_transpose(float (&c)[NT][4],
                                                  PanelTile<8 * NT, COLS> b) const {
    auto a = [&](int step) {
      if constexpr (IN_REGISTERS)
        return fragments[step];
      else
        return tile.rows_from(row, step);
    };
    wgmma_abt<false>(c, a(0), b.rows_from(0, 0));
#pragma unroll
    for (int step = 1; step < COLS / 16; ++step) wgmma_abt<true>(c, a(step), b.rows_from(0, step));
    wgmma_commit();
  }
};

// c (64, COLS) = p b, or c += p b if `add`; p (64, ROWS) in A fragments. Issued, not waited for.
template <int ROWS, int COLS>
__device__ __forceinline__ void wgmma_pb(float (&c)[COLS / 8][4], const Fragment4 (&p)[ROWS / 16],
                                         PanelTile<ROWS, COLS> b, bool add) {
#pragma unroll
  for (int step = 0; step < ROWS / 16; ++step)
    wgmma_ab(c, p[step], b.block_of_rows(step), add || step > 0);
  wgmma_commit();
}

// Rounds C tiles to A fragments.
template <int NT>
__device__ __forceinline__ void pack_fragments(Fragment4 (&p)[NT / 2], const float (&c)[NT][4]) {
#pragma unroll
  for (int i = 0; i < NT / 2; ++i) p[i] = pack_a(c[2 * i], c[2 * i + 1]);
}

#endif  // LK_DEVICE_HAS_WGMMA

}  // namespace lk
