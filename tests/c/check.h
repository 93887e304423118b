// The test framework: TEST(name) { CHECK(condition); }
#pragma once

#include <exception>
#include <string>

namespace check {

struct Test {
    Test(const char* name, void (*body)());
};

void that(bool good, const char* what, const char* file, int line);
/// First argument of the program: the folder that make_models has filled.
const std::string& folder();

/// what() of the exception that `body` throws; "" if it throws none.
template <class F>
std::string error_of(F body) {
    try {
        body();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace check

#define CHECK(...) ::check::that(bool(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define TEST(name)                                       \
    static void name();                                  \
    static const ::check::Test name##_test(#name, name); \
    static void name()
