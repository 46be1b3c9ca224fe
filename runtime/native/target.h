// Compiles what lies between BEGIN and END for processors with the named features, whatever flags
// the file itself is compiled with. So one compiler command serves all files.
// Headers come first, outside: their inline functions must stay usable on every processor.
#pragma once

#define PM_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define PM_TARGET_BEGIN(features) \
  PM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PM_TARGET_END PM_PRAGMA(clang attribute pop)
#else
#define PM_TARGET_BEGIN(features) PM_PRAGMA(GCC push_options) PM_PRAGMA(GCC target(features))
#define PM_TARGET_END PM_PRAGMA(GCC pop_options)
#endif

#define PM_OUT_OF_LINE __attribute__((noinline))
#define PM_IN_LINE inline __attribute__((always_inline))
