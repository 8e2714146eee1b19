// What files compiled with AVX-512 share; each has its own copy.
#pragma once

#include "cpu_kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

#include "cpu_vectors.h"

namespace llava::nn::cpu {

// cpu_byte_products_avx512.cpp
void multiply_int8_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y);
void multiply_int4_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y);
void quantize_row_avx512(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                         std::int32_t* sums, float* rest);

namespace {

constexpr int kVectors = 4;  // of 16 outputs in a block

inline __m512i load(const void* from) { return _mm512_loadu_si512(from); }

}  // namespace
}  // namespace llava::nn::cpu

#endif
