#include "kernels_bind.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "kernels_peak.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace flyweight {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ByteRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Positions = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

const Kernels& table(const std::string& isa) {
  const Kernels* k = kernels(isa.c_str());
  if (!k) throw std::invalid_argument("no instruction set '" + isa + "' on this processor");
  return *k;
}

Format format_of(uint32_t number, int64_t cols) {
  const auto format = static_cast<Format>(number);
  require(block_size(format) > 0, "not a format");
  require(cols > 0 && cols % block_size(format) == 0, "columns are no multiple of the block");
  return format;
}

// Zeroed, at a multiple of 64 bytes.
template <class T>
Out<T> make(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  constexpr std::align_val_t kAlign{64};
  auto* data = static_cast<T*>(::operator new(n * sizeof(T) + 64, kAlign));
  for (size_t i = 0; i < n; ++i) data[i] = T{};
  nb::capsule owner(data, [](void* p) noexcept { ::operator delete(p, std::align_val_t{64}); });
  return Out<T>(data, shape, owner);
}

Out<float> copy(Vector x) {
  Out<float> y = make<float>({x.size()});
  std::copy(x.data(), x.data() + x.size(), y.data());
  return y;
}

size_t row_bytes(Format f, int64_t cols) { return cols / block_size(f) * block_bytes(f); }

Out<uint8_t> pack_matrix(const std::string& isa, uint32_t number, int64_t rows, int64_t cols,
                         Bytes weights) {
  const Kernels& k = table(isa);
  const Format f = format_of(number, cols);
  const size_t row = row_bytes(f, cols), panel = k.panel_bytes(f, cols);
  require(rows > 0 && weights.size() == row * static_cast<size_t>(rows), "weights have not the size");
  const int64_t panels = (rows + kPanel - 1) / kPanel;
  Out<uint8_t> out = make<uint8_t>({panels * panel});
  for (int64_t p = 0; p < panels; ++p) {
    const int n = static_cast<int>(rows - p * kPanel < kPanel ? rows - p * kPanel : kPanel);
    k.pack(f, cols, weights.data() + p * kPanel * row, n, out.data() + p * panel);
  }
  return out;
}

Out<uint8_t> prepare_rows(const std::string& isa, uint32_t number, Matrix x) {
  const Kernels& k = table(isa);
  const auto cols = static_cast<int64_t>(x.shape(1));
  const Format f = format_of(number, cols);
  const size_t stride = k.input_bytes(f, cols);
  Out<uint8_t> out = make<uint8_t>({x.shape(0), stride});
  for (size_t t = 0; t < x.shape(0); ++t) {
    k.prepare(f, cols, x.data() + t * cols, out.data() + t * stride);
  }
  return out;
}

// rows of `panels` from `first` (a multiple of kPanel) on; `repeats` times, for timings.
Out<float> product(const std::string& isa, uint32_t number, int64_t cols, Bytes panels,
                   int64_t first, int64_t rows, ByteRows inputs, int repeats) {
  const Kernels& k = table(isa);
  const Format f = format_of(number, cols);
  const size_t panel = k.panel_bytes(f, cols);
  require(first >= 0 && first % kPanel == 0 && rows > 0, "rows are wrong");
  require(((first + rows + kPanel - 1) / kPanel) * panel <= panels.size(), "panels are too few");
  require(inputs.shape(1) >= k.input_bytes(f, cols), "inputs are too short");
  Out<float> out = make<float>({inputs.shape(0), static_cast<size_t>(rows)});
  nb::gil_scoped_release free;
  for (int i = 0; i < repeats; ++i) {
    k.product(f, cols, panels.data() + first / kPanel * panel, rows, inputs.data(), inputs.shape(1),
              static_cast<int64_t>(inputs.shape(0)), out.data(), rows);
  }
  return out;
}

// As product, with rows in ggml's layout.
Out<float> product_stored(const std::string& isa, uint32_t number, int64_t cols, Bytes data,
                          int64_t first, int64_t rows, ByteRows inputs, int repeats) {
  const Kernels& k = table(isa);
  const Format f = format_of(number, cols);
  const size_t row = row_bytes(f, cols);
  require(multiplied_as_stored(f), "the format is not one that products take as it is stored");
  require(first >= 0 && rows > 0 && (first + rows) * row <= data.size(), "rows are too few");
  require(inputs.shape(1) >= k.input_bytes(f, cols), "inputs are too short");
  Out<float> out = make<float>({inputs.shape(0), static_cast<size_t>(rows)});
  nb::gil_scoped_release free;
  for (int i = 0; i < repeats; ++i) {
    k.product_stored(f, cols, data.data() + first * row, rows, inputs.data(), inputs.shape(1),
                     static_cast<int64_t>(inputs.shape(0)), out.data(), rows);
  }
  return out;
}

Out<float> unpack(const std::string& isa, uint32_t number, int64_t cols, Bytes panels, int64_t row) {
  const Kernels& k = table(isa);
  const Format f = format_of(number, cols);
  const size_t panel = k.panel_bytes(f, cols);
  require(row >= 0 && (row / kPanel + 1) * panel <= panels.size(), "no such row");
  Out<float> out = make<float>({static_cast<size_t>(cols)});
  k.unpack_row(f, cols, panels.data() + row / kPanel * panel, static_cast<int>(row % kPanel),
               out.data());
  return out;
}

Out<float> dequantise_row(const std::string& isa, uint32_t number, int64_t cols, Bytes row) {
  const Format f = format_of(number, cols);
  require(row.size() == row_bytes(f, cols), "the row has not the size");
  Out<float> out = make<float>({static_cast<size_t>(cols)});
  table(isa).dequantise(f, cols, row.data(), out.data());
  return out;
}

const float* data_or_null(const std::optional<Vector>& v, size_t n) {
  if (v) require(v->size() == n, "gain or bias has not the size");
  return v ? v->data() : nullptr;
}

Out<float> attend(const std::string& isa, uint32_t number, Matrix queries, float scale,
                  std::optional<Vector> slopes, Positions position, Positions from, ByteRows keys,
                  ByteRows values, int64_t first, const std::vector<int64_t>& calls) {
  const Kernels& k = table(isa);
  const auto f = static_cast<Format>(number);
  const size_t rows = queries.shape(0), dim = queries.shape(1);
  require(position.size() == rows && from.size() == rows, "positions are not one per row");
  require(keys.shape(1) >= k.stored_bytes(f, dim) && keys.shape(1) == values.shape(1),
          "the cache's rows have not the size");
  int64_t count = 0;
  for (int64_t n : calls) count += n;
  require(count <= static_cast<int64_t>(keys.shape(0)) && keys.shape(0) == values.shape(0),
          "the cache has not that many rows");
  std::vector<const float*> q(rows);
  for (size_t r = 0; r < rows; ++r) q[r] = queries.data() + r * dim;
  std::vector<float> max(rows, -std::numeric_limits<float>::infinity()), sum(rows, 0.0f);
  Out<float> acc = make<float>({rows, dim});
  int64_t at = 0;
  for (int64_t n : calls) {
    k.attend(f, dim, rows, q.data(), scale, data_or_null(slopes, rows), position.data(),
             from.data(), keys.data() + at * keys.shape(1), values.data() + at * keys.shape(1),
             keys.shape(1), first + at, n, max.data(), sum.data(), acc.data());
    at += n;
  }
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < dim; ++i) acc.data()[r * dim + i] /= sum[r];
  }
  return acc;
}

}  // namespace

void bind_kernels(nb::module_& m) {
  nb::module_ k = m.def_submodule("kernels", "The kernels of csrc/kernels.h, one by one.");
  k.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const char* const* n = instruction_sets(); *n; ++n) names.emplace_back(*n);
    return names;
  });
  k.def("block_size", [](uint32_t f) { return block_size(static_cast<Format>(f)); });
  k.def("block_bytes", [](uint32_t f) { return block_bytes(static_cast<Format>(f)); });
  k.def("panel_bytes", [](const std::string& isa, uint32_t f, int64_t cols) {
    return table(isa).panel_bytes(format_of(f, cols), cols);
  });
  k.def("peak", [](const std::string& isa) { return peak_operations(isa.c_str()) / 1e9; }, "isa"_a,
        "8-bit operations of one core, billions a second; 0 where the set has none for them.");
  k.def("read", [](Bytes data, int repeats) {
    uint64_t sum = 0;
    nb::gil_scoped_release free;
    for (int i = 0; i < repeats; ++i) sum += read_all(data.data(), data.size());
    return sum;
  }, "data"_a, "repeats"_a = 1);
  k.def("read_bandwidth", &read_bandwidth, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Bytes a second that so many threads together read from memory.");
  k.def("pack", &pack_matrix, "isa"_a, "format"_a, "rows"_a, "cols"_a, "weights"_a);
  k.def("prepare", &prepare_rows, "isa"_a, "format"_a, "x"_a);
  k.def("product", &product, "isa"_a, "format"_a, "cols"_a, "panels"_a, "first"_a, "rows"_a,
        "inputs"_a, "repeats"_a = 1);
  k.def("multiplied_as_stored",
        [](uint32_t f) { return multiplied_as_stored(static_cast<Format>(f)); });
  k.def("product_stored", &product_stored, "isa"_a, "format"_a, "cols"_a, "data"_a, "first"_a,
        "rows"_a, "inputs"_a, "repeats"_a = 1);
  k.def("unpack_row", &unpack, "isa"_a, "format"_a, "cols"_a, "panels"_a, "row"_a);
  k.def("dequantise", &dequantise_row, "isa"_a, "format"_a, "cols"_a, "row"_a);
  k.def("rms_norm", [](const std::string& isa, Vector x, std::optional<Vector> gain, float eps) {
    Out<float> y = make<float>({x.size()});
    table(isa).rms_norm(x.size(), x.data(), data_or_null(gain, x.size()), eps, y.data());
    return y;
  }, "isa"_a, "x"_a, "gain"_a.none(), "eps"_a);
  k.def("layer_norm", [](const std::string& isa, Vector x, std::optional<Vector> gain,
                         std::optional<Vector> bias, float eps) {
    Out<float> y = make<float>({x.size()});
    table(isa).layer_norm(x.size(), x.data(), data_or_null(gain, x.size()),
                          data_or_null(bias, x.size()), eps, y.data());
    return y;
  }, "isa"_a, "x"_a, "gain"_a.none(), "bias"_a.none(), "eps"_a);
  k.def("activate", [](const std::string& isa, int32_t activation, Vector x) {
    Out<float> y = make<float>({x.size()});
    table(isa).activate(static_cast<Activation>(activation), x.size(), x.data(), y.data());
    return y;
  }, "isa"_a, "activation"_a, "x"_a);
  k.def("multiply", [](const std::string& isa, Vector x, Vector y) {
    require(x.size() == y.size(), "sizes differ");
    Out<float> z = copy(y);
    table(isa).multiply(x.size(), x.data(), z.data());
    return z;
  }, "isa"_a, "x"_a, "y"_a);
  k.def("add", [](const std::string& isa, float scale, Vector x, Vector y) {
    require(x.size() == y.size(), "sizes differ");
    Out<float> z = copy(y);
    table(isa).add(x.size(), scale, x.data(), z.data());
    return z;
  }, "isa"_a, "scale"_a, "x"_a, "y"_a);
  k.def("rotate", [](const std::string& isa, Vector cos, Vector sin, bool interleaved, Vector x) {
    require(cos.size() == sin.size() && x.size() == 2 * cos.size(), "sizes differ");
    Out<float> y = copy(x);
    table(isa).rotate(cos.size(), cos.data(), sin.data(), interleaved, y.data());
    return y;
  }, "isa"_a, "cos"_a, "sin"_a, "interleaved"_a, "x"_a);
  k.def("store", [](const std::string& isa, uint32_t f, Matrix x) {
    const Kernels& t = table(isa);
    const size_t bytes = t.stored_bytes(static_cast<Format>(f), x.shape(1));
    Out<uint8_t> out = make<uint8_t>({x.shape(0), bytes});
    for (size_t i = 0; i < x.shape(0); ++i) {
      t.store(static_cast<Format>(f), x.shape(1), x.data() + i * x.shape(1), out.data() + i * bytes);
    }
    return out;
  }, "isa"_a, "format"_a, "x"_a);
  k.def("attend", &attend, "isa"_a, "format"_a, "queries"_a, "scale"_a, "slopes"_a.none(),
        "position"_a, "from_"_a, "keys"_a, "values"_a, "first"_a, "calls"_a);
  bind_training(k);
}

}  // namespace flyweight
