#include "bind_program.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "error.h"

namespace nb = nanobind;

namespace flyweight {
namespace {

template <class T>
T field(nb::handle object, const char* name) {
  nb::object value = nb::getattr(object, name, nb::none());
  T result{};
  if (value.is_none() || !nb::try_cast<T>(value, result)) {
    throw Error(text("not a valid program: ", nb::str(nb::handle(object.type())).c_str(), ".",
                     name, " is ", nb::repr(value).c_str()));
  }
  return result;
}

// An array as it lies: what it would be converted to would be gone after this call. `value`: the
// Python object that it is.
template <class T>
T array_field(nb::handle object, const char* name, nb::object value) {
  T result{};
  if (!nb::try_cast<T>(value, result, false)) {
    throw Error(text("not a valid program: ", nb::str(nb::handle(object.type())).c_str(), ".", name,
                     " is no contiguous array of the type that is wanted"));
  }
  return result;
}

// Out-of-range values become ones that the validation refuses.
template <class E>
E enumerated(nb::handle object, const char* name) {
  const auto value = field<int64_t>(object, name);
  return static_cast<E>(value < 0 || value > 1 << 20 ? 1 << 20 : static_cast<int32_t>(value));
}

WeightKind weight_kind(nb::handle weight) {
  const auto kind = field<std::string>(weight, "kind");
  if (kind == "matrix") return WeightKind::Matrix;
  if (kind == "table") return WeightKind::Table;
  if (kind == "vector") return WeightKind::Vector;
  throw Error(text("not a valid program: a weight's kind is '", kind,
                   "'; matrix, table and vector are known"));
}

// Whether an array's memory is a mapping made for reading: what it is a view of, is an mmap that
// gives no writable buffer.
bool maps_a_file(nb::handle array) {
  nb::object base = nb::borrow(array);
  for (int depth = 0; depth < 16; ++depth) {
    nb::object next = nb::getattr(base, "base", nb::none());
    if (next.is_none()) next = nb::getattr(base, "obj", nb::none());  // a memoryview
    if (next.is_none()) break;
    base = next;
  }
  nb::module_ modules = nb::module_::import_("sys").attr("modules");
  nb::object mmap = modules.attr("get")("mmap");
  if (mmap.is_none() || !nb::isinstance(base, mmap.attr("mmap"))) return false;
  Py_buffer view;
  if (PyObject_GetBuffer(base.ptr(), &view, PyBUF_SIMPLE) != 0) {
    PyErr_Clear();
    return false;
  }
  const bool readonly = view.readonly;
  PyBuffer_Release(&view);
  return readonly;
}

Weight read_weight(nb::handle object, nb::list& arrays) {
  using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  nb::object array = nb::getattr(object, "data");
  arrays.append(array);
  const auto data = array_field<Bytes>(object, "data", array);
  const auto format = field<int64_t>(object, "format");
  std::vector<int64_t> order;
  nb::object given = nb::getattr(object, "order");
  if (!given.is_none()) {
    using Places = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    const auto places = array_field<Places>(object, "order", given);
    order.assign(places.data(), places.data() + places.size());
  }
  return {field<std::string>(object, "name"),
          weight_kind(object),
          static_cast<Format>(format < 0 || format > 1 << 20 ? 1 << 20 : format),
          field<int64_t>(object, "rows"),
          field<int64_t>(object, "cols"),
          data.data(),
          data.size(),
          maps_a_file(array),
          std::move(order)};
}

}  // namespace

Program read_program(nb::handle program, nb::list& arrays) {
  Program p;
  p.vocab_size = field<int64_t>(program, "vocab_size");
  p.context = field<int64_t>(program, "context");
  p.frequencies = field<int64_t>(program, "frequencies");
  p.logits = field<int32_t>(program, "logits");
  for (nb::handle b : field<nb::list>(program, "buffers")) {
    p.buffers.push_back({field<std::string>(b, "name"), enumerated<Rows>(b, "rows"),
                         field<int64_t>(b, "width"), field<int64_t>(b, "offset")});
  }
  for (nb::handle w : field<nb::list>(program, "weights")) {
    p.weights.push_back(read_weight(w, arrays));
  }
  for (nb::handle o : field<nb::list>(program, "ops")) {
    p.ops.push_back({enumerated<Kind>(o, "kind"), enumerated<Rows>(o, "rows"),
                     field<std::vector<int32_t>>(o, "sources"),
                     field<std::vector<int32_t>>(o, "targets"),
                     field<std::vector<int32_t>>(o, "weights"),
                     field<std::vector<int64_t>>(o, "ints"),
                     field<std::vector<float>>(o, "floats")});
  }
  for (nb::handle s : field<nb::list>(program, "slots")) {
    p.slots.push_back({enumerated<Rows>(s, "rows"), field<int64_t>(s, "kv_heads"),
                       field<int64_t>(s, "head_dim")});
  }
  nb::object spelling = nb::getattr(program, "spelling", nb::none());
  if (!spelling.is_none()) {
    using Symbols = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
    const auto symbols = array_field<Symbols>(spelling, "symbols", nb::getattr(spelling, "symbols"));
    p.spelling.slots = static_cast<int64_t>(symbols.shape(1));
    p.spelling.pad = field<int32_t>(spelling, "pad");
    p.spelling.symbols.assign(symbols.data(), symbols.data() + symbols.size());
  }
  return p;
}

}  // namespace flyweight
