#include "explain.h"

#include <utility>

namespace ar_fast {

std::vector<std::string>*& explanation() {
  thread_local std::vector<std::string>* lines = nullptr;
  return lines;
}

namespace {
std::vector<std::string>& lines_of_thread() {
  thread_local std::vector<std::string> lines;
  return lines;
}
}  // namespace

void explain_begin() {
  lines_of_thread().clear();
  explanation() = &lines_of_thread();
}

std::vector<std::string> explain_end() {
  explanation() = nullptr;
  return std::exchange(lines_of_thread(), {});
}

}  // namespace ar_fast
