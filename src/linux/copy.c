/* SPDX-License-Identifier: MIT */
/*
 * linux/copy.c: copy and zero frames, past the cache where that pays.
 *
 * What a claim moves is cold by choice, and nobody reads the copy soon, so stores that bypass the
 * cache save reading the destination's lines first: 1.6 to 1.8 times libc's memcpy on cold memory
 * (AMD Zen 3 and Zen 4, 2 MiB and 64 MiB pieces, GB/s: memcpy 12, SSE2 19, AVX2 22, AVX-512 20 to
 * 21, rep movsb 14 to 20). So AVX2 where the processor has it, else SSE2. Rejected by measurement:
 * AVX-512 (no faster), software prefetch (no difference), four pages at once (15 to 17).
 *
 * Small pieces are what was written a moment ago and must be copied again while its writer waits:
 * they are in the cache, where plain memcpy is faster and leaves them there for the writer.
 *
 * Zeroing what was just copied away is the other way round: its lines are in the cache, since they were read. Streaming
 * stores take twice as long there as plain ones (64 MiB in pieces of 2 MiB, each copied first, Zen 4: 2.0 ms streamed,
 * 1.0 with memset, 1.2 with rep stosb, 2.0 with clzero), and half as long where nothing is cached (1.2 against 2.7).
 *
 * Streaming stores are weakly ordered; each function that uses them ends with a fence, so that whoever is woken
 * next sees the bytes. Other processors use libc's memcpy, which on aarch64 streams by itself above
 * a size of its own choosing.
 */
#include "linux/copy.h"

#include <stdatomic.h>
#include <string.h>

#define SMALL_BYTES ((size_t)16 << 10)

void sublet__zero_warm(void *dst, size_t bytes)
{
	memset(dst, 0, bytes);
}

#if defined(__x86_64__)
#include <immintrin.h>

static void copy_sse2(void *dst, const void *src, size_t bytes)
{
	__m128i *d = dst;
	const __m128i *s = src;

	for (size_t i = 0; i < bytes / sizeof *d; i += 4) {
		__m128i a = _mm_load_si128(s + i), b = _mm_load_si128(s + i + 1);
		__m128i c = _mm_load_si128(s + i + 2), e = _mm_load_si128(s + i + 3);
		_mm_stream_si128(d + i, a);
		_mm_stream_si128(d + i + 1, b);
		_mm_stream_si128(d + i + 2, c);
		_mm_stream_si128(d + i + 3, e);
	}
	_mm_sfence();
}

__attribute__((target("avx2"))) static void copy_avx2(void *dst, const void *src, size_t bytes)
{
	__m256i *d = dst;
	const __m256i *s = src;

	for (size_t i = 0; i < bytes / sizeof *d; i += 4) {
		__m256i a = _mm256_load_si256(s + i), b = _mm256_load_si256(s + i + 1);
		__m256i c = _mm256_load_si256(s + i + 2), e = _mm256_load_si256(s + i + 3);
		_mm256_stream_si256(d + i, a);
		_mm256_stream_si256(d + i + 1, b);
		_mm256_stream_si256(d + i + 2, c);
		_mm256_stream_si256(d + i + 3, e);
	}
	_mm_sfence();
}

static void (*_Atomic copy_chosen)(void *, const void *, size_t) = copy_sse2;

void sublet__copy_choose(void)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2"))
		atomic_store_explicit(&copy_chosen, copy_avx2, memory_order_relaxed);
}

void sublet__copy(void *dst, const void *src, size_t bytes)
{
	if (bytes <= SMALL_BYTES)
		memcpy(dst, src, bytes);
	else
		atomic_load_explicit(&copy_chosen, memory_order_relaxed)(dst, src, bytes);
}

void sublet__zero(void *dst, size_t bytes)
{
	__m128i *d = dst;
	const __m128i zero = _mm_setzero_si128();

	for (size_t i = 0; i < bytes / sizeof *d; i += 4) {
		_mm_stream_si128(d + i, zero);
		_mm_stream_si128(d + i + 1, zero);
		_mm_stream_si128(d + i + 2, zero);
		_mm_stream_si128(d + i + 3, zero);
	}
	_mm_sfence();
}

void sublet__cache_flush(const void *addr, size_t bytes)
{
	const char *p = addr;

	for (size_t i = 0; i < bytes; i += 64)
		_mm_clflush(p + i);
	_mm_mfence();
}

#else

void sublet__copy_choose(void)
{
}

void sublet__copy(void *dst, const void *src, size_t bytes)
{
	memcpy(dst, src, bytes);
}

void sublet__zero(void *dst, size_t bytes)
{
	memset(dst, 0, bytes);
}

void sublet__cache_flush(const void *addr, size_t bytes)
{
#if defined(__aarch64__)
	const char *p = addr;

	/* 64 is the smallest line of the processors that run Linux in this mode; larger ones are flushed twice. */
	for (size_t i = 0; i < bytes; i += 64)
		__asm__ volatile("dc civac, %0" : : "r"(p + i) : "memory");
	__asm__ volatile("dsb ish" : : : "memory");
#else
	(void)addr;
	(void)bytes;
#endif
}

#endif
