// kernels_impl.hpp for any processor: eight sums at once, which a compiler turns into its baseline's vectors.
#include "kernels.hpp"

#include "kernels_impl.hpp"

namespace gptfast {
namespace {

struct Portable {
    struct Vector {
        float x[8];
    };
    static constexpr std::int64_t kWidth = 8;
    static Vector zero() { return {}; }
    static Vector set(float x) { return {{x, x, x, x, x, x, x, x}}; }
    template <class T>
    static Vector load(const T* p) {
        Vector v;
        for (int i = 0; i < 8; ++i) v.x[i] = to_float(p[i]);
        return v;
    }
    static void store(float* p, const Vector& v) {
        for (int i = 0; i < 8; ++i) p[i] = v.x[i];
    }
    static Vector add(Vector a, const Vector& b) {
        for (int i = 0; i < 8; ++i) a.x[i] += b.x[i];
        return a;
    }
    static Vector fma(const Vector& a, const Vector& b, Vector c) {
        for (int i = 0; i < 8; ++i) c.x[i] += a.x[i] * b.x[i];
        return c;
    }
    static float sum(const Vector& v) {
        float total = 0;
        for (float x : v.x) total += x;
        return total;
    }
};

}  // namespace

const StepKernels& step_kernels_portable(bool bfloat16) { return kernels_of<Portable>(bfloat16); }

}  // namespace gptfast
