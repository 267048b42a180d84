/* A stand-in for CUDA's runtime on host memory, for tests on machines without a GPU: it proves names, order and lifetimes
   of calls, nothing about a GPU. Built by conftest.py as libcudart.so.12. */
#include <stdlib.h>
#include <string.h>

static __thread int device = 0;
static int made = 0, live = 0;

int standin_device(void) { return device; }
int standin_made(void) { return made; }
int standin_live(void) { return live; }

static int take(void **pointer, size_t n) {
    made++;
    live++;
    *pointer = malloc(n);
    return *pointer ? 0 : 2;
}
static int give(void *pointer) {
    live--;
    free(pointer);
    return 0;
}

int cudaMalloc(void **pointer, size_t n) { return take(pointer, n); }
int cudaMallocHost(void **pointer, size_t n) { return take(pointer, n); }
int cudaStreamCreate(void **stream) { return take(stream, 1); }
int cudaFree(void *pointer) { return give(pointer); }
int cudaFreeHost(void *pointer) { return give(pointer); }
int cudaStreamDestroy(void *stream) { return give(stream); }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
    if (kind != 4) return 21;
    memcpy(to, from, n);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
    return stream ? cudaMemcpy(to, from, n, kind) : 400;
}
int cudaStreamSynchronize(void *stream) { return stream ? 0 : 400; }
int cudaSetDevice(int chosen) {
    if (chosen < 0 || chosen > 1) return 101;
    device = chosen;
    return 0;
}
int cudaGetDeviceProperties(char *properties, int of) {
    strcpy(properties, of ? "stand-in 1" : "stand-in 0");
    return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int of) {
    *value = attribute + of;
    return 0;
}
int cudaDriverGetVersion(int *version) {
    *version = 12060;
    return 0;
}
const char *cudaGetErrorString(int code) { return code == 101 ? "invalid device ordinal" : "stand-in error"; }
