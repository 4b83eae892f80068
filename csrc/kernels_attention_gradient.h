// The gradients of attention, in bf16 with float32 sums (arXiv:2205.14135, appendix B.2): with L
// the log-sum-exp of each query's scores and d = rowsum(dO o O),
//   P = exp(scale q k^T - L), dV = P^T dO, dS = scale P o (dO v^T - d), dQ = dS k, dK = dS^T q,
// all of it transposed (a row of P^T is a key), block by block of keys and queries.
// Include after kernels_elementwise.h, and kernels_tiles.h where there are tiles.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>

namespace flyweight {
namespace {

constexpr int64_t kGradientBlock = 128;  // keys, and queries, of a block: its bf16 parts are in L2
constexpr int64_t kGradientStrip = 32;   // keys whose float32 scores are in L1

// The right factor of a product: panels of 16 columns, each [k / 2][16] pairs along k.
struct Pairs {
  const uint32_t* data;
  int64_t panel;  // pairs from one panel to the next
};

// sum + the products of 16 pairs of bf16 with the pair x.
inline F add_pair_products(F sum, const uint32_t* pairs, uint32_t x) {
  using L = Lanes;
  if constexpr (L::kPairsBf16) {
    return L::pair_dot(sum, L::bload(pairs), static_cast<int32_t>(x));
  } else {
    const I w = L::bits(L::load(reinterpret_cast<const float*>(pairs)));
    const auto lane = [](uint32_t v) { return L::floats(L::iset(static_cast<int32_t>(v))); };
    sum = L::fma(L::floats(L::ishl<16>(w)), lane(x << 16), sum);
    const I high = L::iand(w, L::iset(static_cast<int32_t>(0xffff0000)));
    return L::fma(L::floats(high), lane(x & 0xffff0000), sum);
  }
}

#ifdef FLYWEIGHT_AMX
// C (m, n) = A (m, k) B (k, n), added to C unless `fresh`. m, n and k are multiples of 32;
// a and c are apart by a_stride and c_stride numbers.
inline void multiply_pairs(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                           Pairs b, float* c, int64_t c_stride, bool fresh) {
  const auto a_bytes = static_cast<size_t>(2 * a_stride), c_bytes = static_cast<size_t>(4 * c_stride);
  for (int64_t j = 0; j < n; j += 32) {
    const uint32_t* b0 = b.data + j / 16 * b.panel;
    const uint32_t* b1 = b0 + b.panel;
    for (int64_t i = 0; i < m; i += 32) {
      const uint16_t* a0 = a + i * a_stride;
      const uint16_t* a1 = a0 + 16 * a_stride;
      float* c0 = c + i * c_stride + j;
      float* c1 = c0 + 16 * c_stride;
      if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      } else {
        _tile_loadd(0, c0, c_bytes);
        _tile_loadd(1, c0 + 16, c_bytes);
        _tile_loadd(2, c1, c_bytes);
        _tile_loadd(3, c1 + 16, c_bytes);
      }
      for (int64_t p = 0; p < k; p += 32) {
        _tile_loadd(4, a0 + p, a_bytes);
        _tile_loadd(5, b0 + 8 * p, 64);
        _tile_loadd(6, a1 + p, a_bytes);
        _tile_loadd(7, b1 + 8 * p, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 6, 5);
        _tile_dpbf16ps(3, 6, 7);
      }
      _tile_stored(0, c0, c_bytes);
      _tile_stored(1, c0 + 16, c_bytes);
      _tile_stored(2, c1, c_bytes);
      _tile_stored(3, c1 + 16, c_bytes);
    }
  }
}
#else
inline void multiply_pairs(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                           Pairs b, float* c, int64_t c_stride, bool fresh) {
  using L = Lanes;
  constexpr int kRows = L::kPairsBf16 ? 8 : 4, kColumns = L::kPairsBf16 ? 2 : 1;
  for (int64_t j = 0; j < n; j += 16 * kColumns) {
    const uint32_t* panels = b.data + j / 16 * b.panel;
    for (int64_t i = 0; i < m; i += kRows) {
      F sum[kRows][kColumns];
      for (int r = 0; r < kRows; ++r) {
        for (int s = 0; s < kColumns; ++s) {
          sum[r][s] = fresh ? L::set(0.0f) : L::load(c + (i + r) * c_stride + j + 16 * s);
        }
      }
      const uint16_t* rows = a + i * a_stride;
      for (int64_t p = 0; p < k; p += 2) {
        for (int r = 0; r < kRows; ++r) {
          uint32_t x;
          std::memcpy(&x, rows + r * a_stride + p, 4);
          for (int s = 0; s < kColumns; ++s) {
            sum[r][s] = add_pair_products(sum[r][s], panels + s * b.panel + 8 * p, x);
          }
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int s = 0; s < kColumns; ++s) L::store(c + (i + r) * c_stride + j + 16 * s, sum[r][s]);
      }
    }
  }
}
#endif

// 16 pairs from two rows of 16 bf16.
inline I interleave(const uint16_t* even, const uint16_t* odd) {
  using L = Lanes;
  const I low = L::iand(L::isar<16>(L::bits(L::bf16(even))), L::iset(0xffff));
  return L::iadd(L::bits(L::bf16(odd)), low);
}

inline void store_ints(uint32_t* p, I v) {
  Lanes::store(reinterpret_cast<float*>(p), Lanes::floats(v));
}

// 16 rows of 16 32-bit words, apart by the strides, become columns.
inline void transpose_words(const void* from, int64_t from_words, void* to, int64_t to_words) {
  F m[16];
  for (int i = 0; i < 16; ++i) m[i] = Lanes::load(static_cast<const float*>(from) + i * from_words);
  Lanes::transpose(m);
  for (int i = 0; i < 16; ++i) Lanes::store(static_cast<float*>(to) + i * to_words, m[i]);
}

// One head's matrix (rows, dim), padded with zeros to multiples of 32, in the forms that products
// want. `across`: pairs along dim (the right factor of x · mᵀ). `along`: pairs along the rows (the
// right factor of x · m).
struct Padded {
  int64_t rows, dim;
  uint16_t* plain;   // [rows][dim]
  uint32_t* across;  // [rows / 16][dim / 2][16]
  uint32_t* along;   // [dim / 16][rows / 2][16]

  void fill(const uint16_t* from, int64_t stride, int64_t real_rows, int64_t real_dim) {
    for (int64_t r = 0; r < rows; ++r) {
      uint16_t* row = plain + r * dim;
      const int64_t n = r < real_rows ? real_dim : 0;
      if (n) std::memcpy(row, from + r * stride, 2 * n);
      std::memset(row + n, 0, 2 * (dim - n));
    }
  }
  void make_across() {
    for (int64_t r = 0; r < rows; r += 16) {
      for (int64_t d = 0; d < dim / 2; d += 16) {
        transpose_words(plain + r * dim + 2 * d, dim / 2, across + r * dim / 2 + 16 * d, 16);
      }
    }
  }
  void make_along() {
    for (int64_t d = 0; d < dim; d += 16) {
      uint32_t* panel = along + d * rows / 2;
      for (int64_t r = 0; r < rows; r += 2) {
        store_ints(panel + 8 * r, interleave(plain + r * dim + d, plain + (r + 1) * dim + d));
      }
    }
  }
  // The transpose [dim][rows], from `along`.
  void turn(uint16_t* to) const {
    for (int64_t d = 0; d < dim; d += 16) {
      for (int64_t r = 0; r < rows; r += 32) {
        transpose_words(along + d * rows / 2 + 8 * r, 16, to + d * rows + r, rows / 2);
      }
    }
  }
  Pairs pairs_across(int64_t row) const { return {across + row * dim / 2, 8 * dim}; }
  Pairs pairs_along(int64_t row) const { return {along + 8 * row, 8 * rows}; }
};

// A piece of memory handed out in parts, each at a multiple of 64 bytes.
struct Arena {
  uintptr_t at;
  template <class T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(at);
    at += (n * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

class AttentionGradientKernel {
 public:
  explicit AttentionGradientKernel(const AttentionGradient& g)
      : g_(g), rows_((g.length + 31) / 32 * 32), dim_((g.dim + 31) / 32 * 32) {
    Arena counted{0};
    lay_out(counted);
    memory_ = ::operator new(counted.at, std::align_val_t{64});
    Arena real{reinterpret_cast<uintptr_t>(memory_)};
    lay_out(real);
#ifdef FLYWEIGHT_AMX
    configure_tiles(64);
#endif
  }
  ~AttentionGradientKernel() {
#ifdef FLYWEIGHT_AMX
    _tile_release();
#endif
    ::operator delete(memory_, std::align_val_t{64});
  }
  AttentionGradientKernel(const AttentionGradientKernel&) = delete;
  AttentionGradientKernel& operator=(const AttentionGradientKernel&) = delete;

  // One key-value head of one sequence, and all query heads that read it.
  void run(int64_t sequence, int64_t kv_head) {
    const int64_t group = g_.heads / g_.kv_heads;
    load(keys_, g_.k, sequence, kv_head);
    load(values_, g_.v, sequence, kv_head);
    keys_.make_along();
    keys_.turn(turned_keys_);
    std::fill_n(dk_, rows_ * dim_, 0.0f);
    std::fill_n(dv_, rows_ * dim_, 0.0f);
    for (int64_t h = 0; h < group; ++h) query_head(sequence, kv_head * group + h);
    const int64_t place = (sequence * g_.kv_heads + kv_head) * g_.length * g_.dim;
    for (int64_t r = 0; r < g_.length; ++r) {
      write(dk_ + r * dim_, g_.dk + place + r * g_.dim);
      write(dv_ + r * dim_, g_.dv + place + r * g_.dim);
    }
  }

 private:
  void lay_out(Arena& arena) {
    const int64_t n = rows_ * dim_;
    for (Padded* m : {&queries_, &grads_, &keys_, &values_}) {
      *m = {rows_, dim_, arena.take<uint16_t>(n), arena.take<uint32_t>(n / 2),
            arena.take<uint32_t>(n / 2)};
    }
    turned_keys_ = arena.take<uint16_t>(n);
    lse_ = arena.take<float>(rows_);
    delta_ = arena.take<float>(rows_);
    dq_ = arena.take<float>(n);
    dk_ = arena.take<float>(n);
    dv_ = arena.take<float>(n);
    constexpr int64_t kBlockNumbers = kGradientBlock * kGradientBlock;
    scores_ = arena.take<float>(kGradientStrip * kGradientBlock);
    products_ = arena.take<float>(kGradientStrip * kGradientBlock);
    p_ = arena.take<uint16_t>(kBlockNumbers);
    ds_ = arena.take<uint16_t>(kBlockNumbers);
    ds_pairs_ = arena.take<uint32_t>(kBlockNumbers / 2);
  }

  void load(Padded& to, const BfloatHeads& from, int64_t sequence, int64_t head) {
    to.fill(from.row(sequence, head, 0), from.row_stride, g_.length, g_.dim);
  }

  void write(const float* from, uint16_t* to) {
    for_lanes(g_.dim, [&](int n, int64_t i) {
      uint16_t out[16];
      Lanes::store_bf16(out, Lanes::load(from + i));
      std::memcpy(to + i, out, 2 * n);
    });
  }

  void query_head(int64_t sequence, int64_t head) {
    load(queries_, g_.q, sequence, head);
    load(grads_, g_.grad, sequence, head);
    for (Padded* m : {&queries_, &grads_}) {
      m->make_across();
      m->make_along();
    }
    const float* lse = g_.lse + (sequence * g_.heads + head) * g_.length;
    std::copy(lse, lse + g_.length, lse_);
    std::fill(lse_ + g_.length, lse_ + rows_, INFINITY);  // a query that is not: P = 0
    std::fill_n(delta_, rows_, 0.0f);
    for (int64_t r = 0; r < g_.length; ++r) delta_[r] = dot(r, g_.out.row(sequence, head, r));
    std::fill_n(dq_, rows_ * dim_, 0.0f);
    for (int64_t k = 0; k < rows_; k += kGradientBlock) {
      for (int64_t q = g_.mask ? 0 : k; q < rows_; q += kGradientBlock) block(sequence, k, q);
    }
    // dQᵀ lies [dim][rows].
    uint16_t* out = g_.dq + (sequence * g_.heads + head) * g_.length * g_.dim;
    float rows[16 * 16];
    for (int64_t r = 0; r < g_.length; r += 16) {
      const int64_t real = std::min<int64_t>(16, g_.length - r);
      for (int64_t d = 0; d < g_.dim; d += 16) {
        transpose_words(dq_ + d * rows_ + r, rows_, rows, 16);
        for (int64_t i = 0; i < real; ++i) {
          uint16_t some[16];
          Lanes::store_bf16(some, Lanes::load(rows + 16 * i));
          std::memcpy(out + (r + i) * g_.dim + d, some, 2 * std::min<int64_t>(16, g_.dim - d));
        }
      }
    }
  }

  // dO · O of one query.
  float dot(int64_t row, const uint16_t* out) {
    using L = Lanes;
    F sum = L::set(0.0f);
    for_lanes(g_.dim, [&](int n, int64_t i) {
      uint16_t some[16] = {};
      std::memcpy(some, out + i, 2 * n);
      sum = L::fma(L::bf16(grads_.plain + row * dim_ + i), L::bf16(some), sum);
    });
    return L::sum(sum);
  }

  void block(int64_t sequence, int64_t k, int64_t q) {
    const int64_t keys = std::min(kGradientBlock, rows_ - k);
    const int64_t queries = std::min(kGradientBlock, rows_ - q);
    for (int64_t s = 0; s < keys; s += kGradientStrip) {
      multiply_pairs(kGradientStrip, queries, dim_, keys_.plain + (k + s) * dim_, dim_,
                     queries_.pairs_across(q), scores_, kGradientBlock, true);
      multiply_pairs(kGradientStrip, queries, dim_, values_.plain + (k + s) * dim_, dim_,
                     grads_.pairs_across(q), products_, kGradientBlock, true);
      for (int64_t r = 0; r < kGradientStrip; r += 2) {
        for (int64_t c = 0; c < queries; c += 16) {
          scores_to_gradients(sequence, k, q, s + r, c);
          scores_to_gradients(sequence, k, q, s + r + 1, c);
          const uint16_t* even = ds_ + (s + r) * kGradientBlock + c;
          store_ints(ds_pairs_ + c * kGradientBlock / 2 + 8 * (s + r),
                     interleave(even, even + kGradientBlock));
        }
      }
    }
    multiply_pairs(keys, dim_, queries, p_, kGradientBlock, grads_.pairs_along(q), dv_ + k * dim_,
                   dim_, false);
    multiply_pairs(keys, dim_, queries, ds_, kGradientBlock, queries_.pairs_along(q),
                   dk_ + k * dim_, dim_, false);
    multiply_pairs(dim_, queries, keys, turned_keys_ + k, rows_, {ds_pairs_, 8 * kGradientBlock},
                   dq_ + q, rows_, false);
  }

  // P and dS of one key (row `r` of the block from k) and 16 queries (from column `c` of q's).
  void scores_to_gradients(int64_t sequence, int64_t k, int64_t q, int64_t r, int64_t c) {
    using L = Lanes;
    const int64_t at = r % kGradientStrip * kGradientBlock + c;
    const F lse = L::load(lse_ + q + c);
    // No more than 1 where the query sees the key; elsewhere e^x might be infinite, times 0.
    const F below = L::sub(L::mul(L::load(scores_ + at), L::set(g_.scale)), lse);
    F p = exponential_below(L::min(L::set(0.0f), below));
    if (g_.mask || q + c < k + r) p = L::mul(p, seen(sequence, k + r, q + c));
    const F ds = L::mul(L::mul(p, L::set(g_.scale)), L::sub(L::load(products_ + at), L::load(delta_ + q + c)));
    L::store_bf16(p_ + r * kGradientBlock + c, p);
    L::store_bf16(ds_ + r * kGradientBlock + c, ds);
  }

  // 1 where the query sees the key, else 0, for 16 queries.
  F seen(int64_t sequence, int64_t key, int64_t query) {
    uint8_t some[16] = {};
    if (!g_.mask) {
      for (int64_t i = 0; i < 16; ++i) some[i] = query + i >= key;
    } else if (key < g_.length && query < g_.length) {
      const uint8_t* row = g_.mask + sequence * g_.mask_stride + key * g_.length;
      std::memcpy(some, row + query, std::min<int64_t>(16, g_.length - query));
    }
    return Lanes::unsigned_bytes(some);
  }

  const AttentionGradient& g_;
  const int64_t rows_, dim_;
  void* memory_;
  Padded queries_, grads_, keys_, values_;
  uint16_t *turned_keys_, *p_, *ds_;
  uint32_t* ds_pairs_;
  float *lse_, *delta_, *dq_, *dk_, *dv_, *scores_, *products_;
};

void attention_gradient(const AttentionGradient& g, int64_t first, int64_t last) {
  AttentionGradientKernel kernel(g);
  for (int64_t i = first; i < last; ++i) kernel.run(i / g.kv_heads, i % g.kv_heads);
}

}  // namespace
}  // namespace flyweight
