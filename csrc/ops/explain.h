// ar_fast.explain: while a caller listens, the ops of a thread say which kernel, instruction set and tiling they run.
#pragma once

#include <c10/util/StringUtil.h>

#include <string>
#include <vector>

namespace ar_fast {

// The lines that the ops of this thread have said, or null if no caller listens.
std::vector<std::string>*& explanation();

// The first starts to listen; the second stops and returns what was said.
void explain_begin();
std::vector<std::string> explain_end();

template <typename... Parts>
void explain(const Parts&... parts) {
  if (explanation()) explanation()->push_back(c10::str(parts...));
}

}  // namespace ar_fast
