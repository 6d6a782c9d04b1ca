/* Vectors of as many doubles as the processor's registers hold; on all of them the same IEEE operations. */
#include <stdint.h>

#if defined(__AVX512F__)
#define SLOTS 8
#elif defined(__AVX__)
#define SLOTS 4
#else
#define SLOTS 2
#endif

typedef double real __attribute__((vector_size(8 * SLOTS)));
typedef int64_t mask __attribute__((vector_size(8 * SLOTS)));

static inline real every(double x) { return x - (real){0}; }
static inline mask every_int(int64_t x) { return x - (mask){0}; }
static inline real pick(mask which, real yes, real no) { return (real)((which & (mask)yes) | (~which & (mask)no)); }
static inline real size(real x) { return (real)((mask)x & every_int(INT64_MAX)); }
static inline real signed_as(real x, real sign) { return (real)((mask)size(x) | ((mask)sign & every_int(INT64_MIN))); }
