// libtorch's wheel holds Gloo but not its headers. ProcessGroupGloo.hpp of libtorch 2.11.0 compiles with what these five
// files declare; no symbol of Gloo itself is used, only shared pointers to what c10d makes.
#pragma once
