// Single-threaded BLAS products, row-major. The library is a private copy of OpenBLAS (see CMakeLists.txt).
#pragma once

#include <cstdint>

#include "cblas.h"

namespace simkit {

// C [m, n] = beta C + A [m, k] B [n, k]^T
inline void gemm_nt(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float beta, float* c,
                    int ldc) {
    scipy_cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc);
}
inline void gemm_nt(int m, int n, int k, const double* a, int lda, const double* b, int ldb, double beta, double* c,
                    int ldc) {
    scipy_cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0, a, lda, b, ldb, beta, c, ldc);
}

// C [m, n] = beta C + A [k, m]^T B [k, n]
inline void gemm_tn(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float beta, float* c,
                    int ldc) {
    scipy_cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc);
}
inline void gemm_tn(int m, int n, int k, const double* a, int lda, const double* b, int ldb, double beta, double* c,
                    int ldc) {
    scipy_cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1.0, a, lda, b, ldb, beta, c, ldc);
}

// Upper triangle of C [m, m] = beta C + A [m, k] A^T
inline void syrk_n(int m, int k, const float* a, int lda, float beta, float* c, int ldc) {
    scipy_cblas_ssyrk(CblasRowMajor, CblasUpper, CblasNoTrans, m, k, 1.0f, a, lda, beta, c, ldc);
}
inline void syrk_n(int m, int k, const double* a, int lda, double beta, double* c, int ldc) {
    scipy_cblas_dsyrk(CblasRowMajor, CblasUpper, CblasNoTrans, m, k, 1.0, a, lda, beta, c, ldc);
}

// Upper triangle of C [m, m] = beta C + A [k, m]^T A
inline void syrk_t(int m, int k, const float* a, int lda, float beta, float* c, int ldc) {
    scipy_cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, m, k, 1.0f, a, lda, beta, c, ldc);
}
inline void syrk_t(int m, int k, const double* a, int lda, double beta, double* c, int ldc) {
    scipy_cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, m, k, 1.0, a, lda, beta, c, ldc);
}

inline float dot(int n, const float* x, const float* y) { return scipy_cblas_sdot(n, x, 1, y, 1); }
inline double dot(int n, const double* x, const double* y) { return scipy_cblas_ddot(n, x, 1, y, 1); }

inline void use_one_blas_thread() { scipy_openblas_set_num_threads(1); }

}  // namespace simkit
