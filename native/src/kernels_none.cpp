// Tables that this build has not got.
#include "kernels.h"

#if !defined(__x86_64__)
const enrobe::Kernels* enrobe::kernels_avx2() { return nullptr; }
const enrobe::Kernels* enrobe::kernels_avx_vnni() { return nullptr; }
const enrobe::Kernels* enrobe::kernels_avx512() { return nullptr; }
#endif
#if !defined(__x86_64__) || !defined(__linux__)
const enrobe::Kernels* enrobe::kernels_amx() { return nullptr; }
#endif
#if !defined(__aarch64__)
const enrobe::Kernels* enrobe::kernels_arm() { return nullptr; }
#endif
