// SIMKIT_CLONES on a function with a plain loop: the compiler emits it for the x86-64 baseline, AVX2 and AVX-512, and
// the loader picks. Off where the loader cannot (other processors, musl, sanitizers).
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(SIMKIT_SANITIZED)
#define SIMKIT_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SIMKIT_CLONES
#endif

// SIMKIT_X86: a function may be compiled for one instruction set, __attribute__((target("..."))), and called where
// __builtin_cpu_supports says so. For what the clones do not reach; never without the question.
#if defined(__x86_64__) && defined(__GNUC__)
#define SIMKIT_X86
#endif
