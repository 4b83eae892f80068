// The kernels of a training step for Python: arrays are the caller's, bf16 numbers come as uint16.
// Rows are shared among `threads`; their number changes no bit. All release the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "kernels_bind.h"
#include "team.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace flyweight {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

const Kernels& table(const std::string& isa) {
  const Kernels* k = kernels(isa.c_str());
  if (!k) throw std::invalid_argument("no instruction set '" + isa + "' on this processor");
  return *k;
}

template <class T, int dims>
using Array = nb::ndarray<T, nb::ndim<dims>, nb::c_contig, nb::device::cpu>;
using AnyRows = nb::ndarray<nb::ndim<4>, nb::device::cpu>;
using AnyMatrix = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class X>
Format format_of(const X& x) {
  if (x.dtype() == nb::dtype<uint16_t>()) return Format::BF16;
  require(x.dtype() == nb::dtype<float>(), "numbers are neither float32 nor bf16 (as uint16)");
  return Format::F32;
}

size_t size_of(Format format) { return format == Format::BF16 ? 2 : 4; }

// Rows (a, b, c, n) of one format, n contiguous, the other strides whatever they are.
struct Rows {
  Rows(const AnyRows& x, const AnyRows* like = nullptr)
      : data(static_cast<uint8_t*>(x.data())), format(format_of(x)) {
    for (int i = 0; i < 4; ++i) {
      shape[i] = static_cast<int64_t>(x.shape(i));
      stride[i] = x.stride(i) * static_cast<int64_t>(size_of(format));
      require(!like || x.shape(i) == like->shape(i), "shapes differ");
    }
    require(!like || x.dtype() == like->dtype(), "formats differ");
    require(x.stride(3) == 1 || shape[3] <= 1, "a row must be contiguous");
  }
  int64_t count() const { return shape[0] * shape[1] * shape[2]; }
  int64_t n() const { return shape[3]; }
  // A row's place along c.
  int64_t place(int64_t row) const { return row % shape[2]; }
  void* row(int64_t row) const {
    const int64_t c = row % shape[2], ab = row / shape[2];
    return data + ab / shape[1] * stride[0] + ab % shape[1] * stride[1] + c * stride[2];
  }

  uint8_t* data;
  Format format;
  int64_t shape[4], stride[4];
};

const float* data_of(const std::optional<Array<const float, 1>>& gain, int64_t n) {
  if (gain) require(static_cast<int64_t>(gain->size()) == n, "the gain has not the size");
  return gain ? gain->data() : nullptr;
}

void rms_norm_rows(const std::string& isa, AnyRows x, std::optional<Array<const float, 1>> gain,
                   float eps, AnyRows y, Array<float, 1> factors, int threads) {
  const Rows from(x), to(y, &x);
  require(static_cast<int64_t>(factors.size()) == from.count(), "factors are not one per row");
  const float* g = data_of(gain, from.n());
  const Kernels& k = table(isa);
  nb::gil_scoped_release free;
  in_parts(threads, from.count(), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      factors.data()[r] = k.rms_norm_row(from.format, from.n(), from.row(r), g, eps, to.row(r));
    }
  });
}

// Block b is rows [b, b + 1) * block; its part of the gradient by the gain is dgain[b].
void rms_norm_gradient(const std::string& isa, AnyRows grad, AnyRows x,
                       std::optional<Array<const float, 1>> gain, Array<const float, 1> factors,
                       AnyRows dx, std::optional<Array<float, 2>> dgain, int64_t block,
                       int threads) {
  const Rows from(x), of(grad, &x), to(dx, &x);
  require(block > 0, "a block has rows");
  const int64_t blocks = (from.count() + block - 1) / block;
  require(static_cast<int64_t>(factors.size()) == from.count(), "factors are not one per row");
  require(!dgain || (static_cast<int64_t>(dgain->shape(0)) == blocks &&
                     static_cast<int64_t>(dgain->shape(1)) == from.n()), "dgain's shape");
  const float* g = data_of(gain, from.n());
  const Kernels& k = table(isa);
  nb::gil_scoped_release free;
  in_parts(threads, blocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      float* part = dgain ? dgain->data() + b * from.n() : nullptr;
      for (int64_t r = b * block; r < std::min((b + 1) * block, from.count()); ++r) {
        k.rms_norm_gradient(from.format, from.n(), of.row(r), from.row(r), g, factors.data()[r],
                            to.row(r), part);
      }
    }
  });
}

void rotate_rows(const std::string& isa, AnyRows x, Array<const float, 2> cos,
                 Array<const float, 2> sin, bool interleaved, bool back, AnyRows y, int threads) {
  const Rows from(x), to(y, &x);
  const auto places = static_cast<int64_t>(cos.shape(0)), pairs = static_cast<int64_t>(cos.shape(1));
  require(places == from.shape[2] && 2 * pairs <= from.n() && sin.shape(0) == cos.shape(0) &&
          sin.shape(1) == cos.shape(1), "the angles' shape");
  const Kernels& k = table(isa);
  nb::gil_scoped_release free;
  in_parts(threads, from.count(), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const int64_t angle = from.place(r) * pairs;
      k.rotate_row(from.format, from.n(), pairs, cos.data() + angle, sin.data() + angle,
                   interleaved, back, from.row(r), to.row(r));
    }
  });
}

void relu2_rows(const std::string& isa, std::optional<AnyMatrix> grad, AnyMatrix x, AnyMatrix y,
                int threads) {
  const Format format = format_of(x);
  const auto rows = static_cast<int64_t>(x.shape(0)), n = static_cast<int64_t>(x.shape(1));
  for (const AnyMatrix* other : {&y, grad ? &*grad : &y}) {
    require(other->shape(0) == x.shape(0) && other->shape(1) == x.shape(1) &&
            other->dtype() == x.dtype(), "shapes or formats differ");
  }
  const Kernels& k = table(isa);
  const auto at = [&](const AnyMatrix& m, int64_t r) {
    return static_cast<uint8_t*>(m.data()) + r * n * static_cast<int64_t>(size_of(format));
  };
  nb::gil_scoped_release free;
  in_parts(threads, rows, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      k.relu2_row(format, n, grad ? at(*grad, r) : nullptr, at(x, r), at(y, r));
    }
  });
}

// The loss of each row of logits; its gradient takes their place.
void cross_entropy(const std::string& isa, AnyMatrix logits, Array<const int64_t, 1> targets,
                   float scale, float factor, float smoothing, float z, Array<float, 1> losses,
                   int threads) {
  const Kernels& k = table(isa);
  const Format format = format_of(logits);
  const auto rows = static_cast<int64_t>(logits.shape(0)), n = static_cast<int64_t>(logits.shape(1));
  require(targets.size() == logits.shape(0) && losses.size() == logits.shape(0) && n > 0,
          "targets and losses are not one per row");
  for (int64_t r = 0; r < rows; ++r) {
    require(targets.data()[r] < n, "a target is beyond the logits");
  }
  const LossTerms terms{scale, factor, smoothing, z};
  nb::gil_scoped_release free;
  const size_t bytes = n * size_of(format);
  in_parts(threads, rows, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(n);
    for (int64_t r = first; r < last; ++r) {
      void* row = static_cast<uint8_t*>(logits.data()) + r * bytes;
      losses.data()[r] = k.cross_entropy(format, n, row, targets.data()[r], terms, scratch.data());
    }
  });
}

using Heads = nb::ndarray<const uint16_t, nb::ndim<4>, nb::device::cpu>;
using HeadsOut = nb::ndarray<uint16_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Lse = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Masks = nb::ndarray<const uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

BfloatHeads heads_of(const Heads& x, size_t sequences, size_t heads, size_t length, size_t dim) {
  require(x.shape(0) == sequences && x.shape(1) == heads && x.shape(2) == length &&
          x.shape(3) == dim, "heads have not the shape");
  require(x.stride(3) == 1 || dim == 1, "a head's row must be contiguous");
  return {x.data(), x.stride(0), x.stride(1), x.stride(2)};
}

// The gradients of q, k and v into dq, dk and dv.
void attention_gradient(const std::string& isa, Heads grad, Heads q, Heads k, Heads v, Heads out,
                        Lse lse, std::optional<Masks> mask, float scale, HeadsOut dq, HeadsOut dk,
                        HeadsOut dv, int threads) {
  const size_t n = q.shape(0), heads = q.shape(1), groups = k.shape(1), length = q.shape(2),
               dim = q.shape(3);
  require(groups > 0 && heads % groups == 0, "query heads are no multiple of the others");
  require(lse.shape(0) == n && lse.shape(1) == heads && lse.shape(2) == length, "lse's shape");
  require(!mask || ((mask->shape(0) == n || mask->shape(0) == 1) && mask->shape(1) == length &&
                    mask->shape(2) == length), "the mask's shape");
  for (const HeadsOut* x : {&dq, &dk, &dv}) {
    require(x->shape(0) == n && x->shape(1) == (x == &dq ? heads : groups) &&
            x->shape(2) == length && x->shape(3) == dim, "a gradient's shape");
  }
  const AttentionGradient g{
      static_cast<int64_t>(heads), static_cast<int64_t>(groups), static_cast<int64_t>(length),
      static_cast<int64_t>(dim), heads_of(grad, n, heads, length, dim),
      heads_of(q, n, heads, length, dim), heads_of(k, n, groups, length, dim),
      heads_of(v, n, groups, length, dim), heads_of(out, n, heads, length, dim), lse.data(),
      mask ? mask->data() : nullptr,
      mask && mask->shape(0) > 1 ? static_cast<int64_t>(length * length) : 0, scale, dq.data(),
      dk.data(), dv.data()};
  const Kernels& kernels = table(isa);
  nb::gil_scoped_release free;
  in_parts(threads, static_cast<int64_t>(n * groups), [&](int64_t first, int64_t last) {
    kernels.attention_gradient(g, first, last);
  });
}

}  // namespace

void bind_training(nb::module_& k) {
  k.def("use_openmp", [](const std::string& path) { return use_openmp(path.c_str()); }, "path"_a);
  k.def("rms_norm_rows", &rms_norm_rows, "isa"_a, "x"_a, "gain"_a.none(), "eps"_a,
        "y"_a.noconvert(), "factors"_a.noconvert(), "threads"_a);
  k.def("rms_norm_gradient", &rms_norm_gradient, "isa"_a, "grad"_a, "x"_a, "gain"_a.none(),
        "factors"_a, "dx"_a.noconvert(), "dgain"_a.none().noconvert(), "block"_a, "threads"_a);
  k.def("rotate_rows", &rotate_rows, "isa"_a, "x"_a, "cos"_a, "sin"_a, "interleaved"_a, "back"_a,
        "y"_a.noconvert(), "threads"_a);
  k.def("relu2_rows", &relu2_rows, "isa"_a, "grad"_a.none(), "x"_a, "y"_a.noconvert(), "threads"_a);
  k.def("cross_entropy", &cross_entropy, "isa"_a, "logits"_a.noconvert(), "targets"_a, "scale"_a,
        "factor"_a, "smoothing"_a, "z"_a, "losses"_a.noconvert(), "threads"_a);
  k.def("attention_gradient", &attention_gradient, "isa"_a, "grad"_a, "q"_a, "k"_a, "v"_a, "out"_a,
        "lse"_a, "mask"_a.none(), "scale"_a, "dq"_a.noconvert(), "dk"_a.noconvert(),
        "dv"_a.noconvert(), "threads"_a);
}

}  // namespace flyweight
