// What a user, a file or a program got wrong. Becomes flyweight.FlyweightError in Python.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace flyweight {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The parts' text, one after another: text("width ", 3).
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Throws unless `holds`.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw Error(text(parts...));
}

}  // namespace flyweight
