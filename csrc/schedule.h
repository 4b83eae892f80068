// The order in which threads run a program's operations, and the few places where they meet.
#pragma once

#include <vector>

#include "program.h"

namespace flyweight {

// So few rows that every thread prepares all inputs of a product for itself, instead of a part
// of them for all and a barrier.
constexpr int64_t kFewRows = 4;

// How a step is split over the threads.
enum class Split {
  Rows,     // a thread has some rows
  Heads,    // a thread has some (row, key-value head) pairs, all of a head's columns with them
  Columns,  // a thread has some columns of all rows, and reads whole rows
  Items,    // attention's own: reads what Heads wrote without a barrier where rows stand alone
};

enum class Barrier { None, UnlessLone, Always };

struct Step {
  const Op* op;
  // A norm that every thread computes for itself before preparing the inputs; few rows alone.
  const Op* norm = nullptr;
  // PRODUCT and GATED of many rows take two steps: this one prepares, the next one multiplies.
  bool prepares = false;
  Split split = Split::Rows;
  // Key-value heads of a split by heads.
  int64_t heads = 0;
  Barrier before = Barrier::None;
};

// How many rows of a set a run has.
enum class Load { None = 0, Few = 1, Many = 2 };
inline Load load_of(int64_t rows) {
  return rows == 0 ? Load::None : rows <= kFewRows ? Load::Few : Load::Many;
}

// Steps of the operations on tokens and patches, or of those on the wanted rows.
std::vector<Step> schedule(const Program&, const Load (&loads)[kRowSets]);

}  // namespace flyweight
