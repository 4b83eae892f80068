// The kernels that programs are made of: one table of them per instruction set, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight {

// How numbers are stored, by ggml's numbers.
enum class Format : uint32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, BF16 = 30,
};

enum class Activation : int32_t { None = 0, Silu = 1, GeluTanh = 2, GeluErf = 3, Relu2 = 4, Relu = 5 };

// Numbers of a block of a format, and its bytes in ggml's layout. 0 for a format not known.
int64_t block_size(Format);
int64_t block_bytes(Format);

// Rows of a weight matrix that are packed and computed together.
constexpr int kPanel = 16;

// Whether there is a product with rows that are not packed.
constexpr bool multiplied_as_stored(Format format) {
  return format == Format::F32 || format == Format::F16 || format == Format::BF16 ||
         format == Format::Q8_0;
}

// What a loss adds to the plain cross-entropy of scale * logits, in nats: `smoothing` of the
// target's weight is spread over all (arXiv:1512.00567), z times the squared log of the softmax's
// sum is added (arXiv:2204.02311). The gradient alone is multiplied by `factor`.
struct LossTerms {
  float scale, factor, smoothing, z;
};

// Heads of bf16 numbers (sequences, heads, length, dim), dim contiguous; strides in numbers.
struct BfloatHeads {
  const uint16_t* data;
  int64_t sequence_stride, head_stride, row_stride;
  const uint16_t* row(int64_t sequence, int64_t head, int64_t row) const {
    return data + sequence * sequence_stride + head * head_stride + row * row_stride;
  }
};

// What attention's gradients are made of. Queries and keys stand at the same positions.
struct AttentionGradient {
  int64_t heads, kv_heads, length, dim;
  BfloatHeads grad, q, k, v, out;
  const float* lse;  // (sequences, heads, length): log of the sum of e^score
  // Null: a query sees itself and what stands before it. Else 1 where it sees the key:
  // (length of keys, length of queries) per sequence, apart by mask_stride (0: one for all).
  const uint8_t* mask;
  int64_t mask_stride;
  float scale;
  uint16_t *dq, *dk, *dv;  // contiguous, in the shapes of q, k and v
};

struct Kernels {
  const char* isa;  // "amx", "avx512", "avx512vnni", "avx2vnni", "avx2", "portable"

  // --- Weights: a matrix (rows, cols) is packed in panels of kPanel rows, the last one filled up
  // with zeros, each of panel_bytes. cols is a multiple of block_size.
  size_t (*panel_bytes)(Format, int64_t cols);
  // One panel from `rows` (1 to kPanel) rows in ggml's layout.
  void (*pack)(Format, int64_t cols, const void* source, int rows, void* panel);
  // One row of a panel as float32, exactly what ggml's dequantisation gives.
  void (*unpack_row)(Format, int64_t cols, const void* panel, int row, float* out);
  // One row in ggml's layout as float32.
  void (*dequantise)(Format, int64_t cols, const void* row, float* out);

  // --- Products: a row of inputs is prepared once (8-bit blocks, bf16, or as it is) for all the
  // matrices of a format; then out[t * out_stride + r] = sum over c of W[r, c] x[t, c] for
  // t < tokens, r < rows (rows not beyond the panels). The sum's order depends on neither the
  // number of tokens nor the split over threads.
  size_t (*input_bytes)(Format, int64_t cols);
  void (*prepare)(Format, int64_t cols, const float* x, void* input);
  void (*product)(Format, int64_t cols, const void* panels, int64_t rows, const void* inputs,
                  size_t input_stride, int64_t tokens, float* out, int64_t out_stride);
  // The same, to the bit, with rows in ggml's layout, one after another: for the formats that are
  // multiplied_as_stored, at memory's speed but not at that of a cache.
  void (*product_stored)(Format, int64_t cols, const void* data, int64_t rows, const void* inputs,
                         size_t input_stride, int64_t tokens, float* out, int64_t out_stride);

  // --- Between the products. n numbers each; y may be x.
  void (*rms_norm)(int64_t n, const float* x, const float* gain, float eps, float* y);
  void (*layer_norm)(int64_t n, const float* x, const float* gain, const float* bias, float eps,
                     float* y);
  void (*activate)(Activation, int64_t n, const float* x, float* y);
  void (*multiply)(int64_t n, const float* x, float* y);             // y *= x
  void (*add)(int64_t n, float scale, const float* x, float* y);     // y += scale x
  // Turns `pairs` pairs of x, (i, i + pairs) or (2i, 2i + 1) where interleaved.
  void (*rotate)(int64_t pairs, const float* cos, const float* sin, bool interleaved, float* x);

  // --- Attention of one key-value head. The cache keeps, per position, head_dim numbers in F32,
  // F16, BF16 or Q8_0 (store writes one); positions lie `stride` bytes apart.
  size_t (*stored_bytes)(Format, int64_t head_dim);
  void (*store)(Format, int64_t head_dim, const float* x, void* out);
  // Merges positions [first, first + count) into the running state of `rows` query rows:
  // score = scale q·k - slope (position_r - key), seen where from_r <= key <= position_r;
  // max_r, sum_r and acc (rows, head_dim; sum of exp(score - max) v) start as -inf, 0, 0.
  // slopes may be null. keys and values point at position `first`.
  void (*attend)(Format, int64_t head_dim, int64_t rows, const float* const* queries, float scale,
                 const float* slopes, const int64_t* position, const int64_t* from,
                 const void* keys, const void* values, size_t stride, int64_t first, int64_t count,
                 float* max, float* sum, float* acc);

  // --- Training. The loss of one row of n logits, F32 or BF16, for the target (negative: 0, the
  // row counts for nothing); the gradient by the logits takes their place. scratch: n numbers.
  float (*cross_entropy)(Format, int64_t n, void* logits, int64_t target, const LossTerms&,
                         float* scratch);
  // The gradients of the key-value heads [first, last), counted through all sequences, and of the
  // query heads that read them.
  void (*attention_gradient)(const AttentionGradient&, int64_t first, int64_t last);
  // Rows of n numbers, F32 or BF16. y = gain x r, r = 1 / sqrt(mean(x²) + eps), which is returned;
  // gain may be null.
  float (*rms_norm_row)(Format, int64_t n, const void* x, const float* gain, float eps, void* y);
  // Its gradient by x, and dgain += the one by gain, where not null.
  void (*rms_norm_gradient)(Format, int64_t n, const void* grad, const void* x, const float* gain,
                            float r, void* dx, float* dgain);
  // As rotate, from x to y; numbers beyond the pairs are copied. `back` turns the other way.
  void (*rotate_row)(Format, int64_t n, int64_t pairs, const float* cos, const float* sin,
                     bool interleaved, bool back, const void* x, void* y);
  // y = max(x, 0)²; or, grad not being null, its gradient by x.
  void (*relu2_row)(Format, int64_t n, const void* grad, const void* x, void* y);
};

// The table of an instruction set by name; null where this processor or build lacks it. The best
// one for "" or null. FLYWEIGHT_ISA is read by the caller.
const Kernels* kernels(const char* isa);
// All names that this processor can run, best first, null-terminated.
const char* const* instruction_sets();

}  // namespace flyweight
