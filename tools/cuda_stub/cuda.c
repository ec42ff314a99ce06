// CUDA's libraries without a GPU, as far as ONNX Runtime's CUDA provider calls them: memory is the host's, kernels and
// library products do nothing but for those that lay out weights, and a stream that is being captured refuses what CUDA refuses there. Answers are
// meaningless; which nodes the provider takes, what it copies and whether a step can be captured are not.
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int capturing, launches;
static cudaError_t outside_capture(const char *what) {
    if (!capturing) return cudaSuccess;
    fprintf(stderr, "stub: refused while capturing: %s\n", what);
    return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return 0; }
cudaError_t cudaGetDevice(int *d) { *d = 0; return 0; }
cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "no GPU");
    p->major = 9; p->minor = 0; p->multiProcessorCount = 132; p->warpSize = 32; p->totalGlobalMem = 140ull << 30;
    p->sharedMemPerBlock = 48 << 10; p->sharedMemPerBlockOptin = 227 << 10; p->sharedMemPerMultiprocessor = 228 << 10;
    p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048; p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->maxBlocksPerMultiProcessor = 32; p->l2CacheSize = 60 << 20;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    switch (a) {
        case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
        case cudaDevAttrMultiProcessorCount: *v = 132; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 227 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 228 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *v = 48 << 10; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
        case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
        case cudaDevAttrWarpSize: *v = 32; break;
        case cudaDevAttrL2CacheSize: *v = 60 << 20; break;
        default: *v = 1;
    }
    return 0;
}
static size_t device_bytes;
size_t stub_device_bytes(void) { return device_bytes; }
cudaError_t cudaMalloc(void **p, size_t n) { device_bytes += n; if (outside_capture("cudaMalloc")) return 900; *p = aligned_alloc(256, (n + 255) / 256 * 256 + 256); memset(*p, 0, n); return *p ? 0 : 2; }
cudaError_t cudaMallocHost(void **p, size_t n) { device_bytes -= n; return cudaMalloc(p, n); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { return cudaMallocHost(p, n); }
cudaError_t cudaFree(void *p) { if (outside_capture("cudaFree")) return 900; free(p); return 0; }
cudaError_t cudaFreeHost(void *p) { return cudaFree(p); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { free(p); return 0; }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t pool, cudaStream_t s) { *p = malloc(n); return 0; }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = 140ull << 30; return 0; }
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { if (outside_capture("cudaMemcpy")) return 900; memmove(d, s, n); return 0; }
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
    memmove(d, s, n); launches += capturing; return 0; }
cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t st) { launches += capturing; return 0; }
cudaError_t cudaMemset(void *p, int v, size_t n) { if (outside_capture("cudaMemset")) return 900; memset(p, v, n); return 0; }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { memset(p, v, n); launches += capturing; return 0; }
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = malloc(1); return 0; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = malloc(1); return 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return outside_capture("cudaStreamSynchronize"); }
cudaError_t cudaDeviceSynchronize(void) { return outside_capture("cudaDeviceSynchronize"); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return outside_capture("cudaEventSynchronize"); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = malloc(1); return 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = malloc(1); return 0; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) { capturing = 1; launches = 0; return 0; }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { capturing = 0; fprintf(stderr, "stub: captured a graph of %d launches and copies\n", launches); *g = malloc(1); return 0; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *st) { *st = capturing; return 0; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) { *e = malloc(1); return 0; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { return 0; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) { memset(a, 0, sizeof *a); a->type = cudaMemoryTypeDevice; a->devicePointer = (void *)p; return 0; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) { memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; a->numRegs = 64; a->binaryVersion = 90; a->ptxVersion = 90; a->maxDynamicSharedSizeBytes = 227 << 10; return 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t d, unsigned fl) { *n = 2; return 0; }
const char *cudaGetErrorName(cudaError_t e) { return "error"; }
const char *cudaGetErrorString(cudaError_t e) { return e == 900 ? "operation not permitted when stream is capturing" : "error"; }
// The kernels with which the provider lays out 4-bit weights of experts, as fpA_intB_gemm_preprocessors_impl.cu and
// fpA_intB_gemm_adaptor.cu write them: the one thing that is computed here. What calls them, with which sizes and tables,
// is the provider itself. Each matrix goes to the file STUB_TILES: outputs and inputs (int32), its rows, its tiles.
typedef unsigned char u8;
typedef unsigned u32;
static struct { const void *host; char name[160]; } known[16];
static int known_count;
void __cudaRegisterFunction(void **h, const char *host, char *dev, const char *name, int t, void *a, void *b, void *c, void *d, int *w) {
    static const char *wanted[] = {"unpack_transpose_pack_uint4", "permute_rows_kernel", "subbyte_transpose_kernelILi4E",
                                   "interleave_column_major_tensor_kernel", "add_bias_and_interleave_int4s"};
    for (int i = 0; i < 5; i++)
        if (strstr(name, wanted[i]) && known_count < 16) {
            known[known_count].host = host;
            snprintf(known[known_count++].name, sizeof known[0].name, "%s", name);
        }
}
static const u8 *rows; static int rows_n, rows_k;
static u8 nibble(const u8 *p, size_t i) { return p[i / 2] >> (i % 2 * 4) & 15; }
static void put_nibble(u8 *p, size_t i, u8 v) { p[i / 2] = (p[i / 2] & (i % 2 ? 0x0f : 0xf0)) | v << (i % 2 * 4); }
#define ARG(type, i) (*(type *)a[i])
static void lay_out(const char *name, void **a) {
    if (strstr(name, "unpack_transpose_pack_uint4")) {  // (n, k) unsigned to (k, n) signed
        rows = ARG(const u8 *, 0); rows_n = ARG(int, 2); rows_k = ARG(int, 3);
        u8 *out = ARG(u8 *, 1);
        for (int c = 0; c < rows_k; c++)
            for (int r = 0; r < rows_n; r++) put_nibble(out, (size_t)c * rows_n + r, (nibble(rows, (size_t)r * rows_k + c) - 8) & 15);
    } else if (strstr(name, "permute_rows_kernel")) {
        u32 *out = ARG(u32 *, 0); const u32 *in = ARG(const u32 *, 1); const int *order = ARG(const int *, 4);
        int count = ARG(int, 2), words = ARG(int, 3) / (32 / ARG(int, 7)), tile = ARG(int, 5);
        for (int r = 0; r < count; r++)
            memcpy(out + (size_t)r * words, in + (size_t)(r / tile * tile + order[r % tile]) * words, 4ul * words);
    } else if (strstr(name, "subbyte_transpose_kernel")) {
        u8 *out = ARG(u8 *, 0); const u8 *in = ARG(const u8 *, 1);
        int count = ARG(int, 2), columns = ARG(int, 3);
        for (int r = 0; r < count; r++)
            for (int c = 0; c < columns; c++) put_nibble(out, (size_t)c * count + r, nibble(in, (size_t)r * columns + c));
    } else if (strstr(name, "interleave_column_major_tensor_kernel")) {
        u32 *out = ARG(u32 *, 0); const u32 *in = ARG(const u32 *, 1);
        int words = ARG(int, 2) / 8, columns = ARG(int, 3), tile = ARG(int, 5) / 8, mixed = ARG(int, 6);
        for (int c = 0; c < columns; c++)
            for (int w = 0; w < words; w++)
                out[(size_t)(c / mixed) * words * mixed + mixed * (w / tile * tile) + tile * (c % mixed) + w % tile] = in[(size_t)c * words + w];
    } else {
        u32 *words = ARG(u32 *, 0);
        size_t count = ARG(size_t, 1);
        for (size_t w = 0; w < count / 8; w++) {
            u32 found = 0;
            for (int i = 0; i < 8; i++) found |= (((words[w] >> 4 * i) + 8) & 15) << 4 * (i % 2 ? (i - 1) / 2 + 4 : i / 2);
            words[w] = found;
        }
        const char *path = getenv("STUB_TILES");
        FILE *file = path ? fopen(path, "ab") : NULL;
        if (file) {
            fwrite(&rows_n, 4, 1, file); fwrite(&rows_k, 4, 1, file);
            fwrite(rows, 1, count / 2, file); fwrite(words, 1, count / 2, file);
            fclose(file);
        }
    }
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
    launches += capturing;
    for (int i = 0; i < known_count; i++)
        if (known[i].host == f) lay_out(known[i].name, a);
    return 0; }
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return cudaLaunchKernel(f, g, b, a, m, s); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return cudaLaunchKernel(f, g, b, a, m, s); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return cudaLaunchKernel(f, c->gridDim, c->blockDim, a, 0, 0); }
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return 0; }
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *n, void **f, unsigned v, unsigned long long fl, enum cudaDriverEntryPointQueryResult *r) { *f = nothing; if (r) *r = 0; return 0; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t *p, const struct cudaMemPoolProps *q) { *p = malloc(1); return 0; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) { *(unsigned long long *)v = 0; return 0; }
void **__cudaRegisterFatBinary(void *b) { static void *h; return &h; }
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, struct CUstream_st *s) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void *s) { *g = *b = (dim3){1, 1, 1}; *m = 0; *(void **)s = 0; return 0; }

// cuBLAS, cuBLASLt and cuDNN: handles, and one algorithm for every product.
int cublasCreate_v2(void **h) { *h = malloc(1); return 0; }
int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
const char *cublasGetStatusName(int s) { return "status"; }
const char *cublasGetStatusString(int s) { return "status"; }
int cublasLtCreate(void **h) { *h = malloc(1); return 0; }
int cublasLtMatmulDescCreate(void **h, int c, int s) { *h = malloc(1); return 0; }
int cublasLtMatrixLayoutCreate(void **h, int t, unsigned long r, unsigned long c, long l) { *h = malloc(1); return 0; }
int cublasLtMatmulPreferenceCreate(void **h) { *h = malloc(1); return 0; }
int cublasLtMatrixTransformDescCreate(void **h, int s) { *h = malloc(1); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int n, void *r, int *got) {
    memset(r, 0, 64); *got = 1; return 0; }
int cudnnCreate(void **h) { *h = malloc(1); return 0; }
unsigned long cudnnGetVersion(void) { return 91000; }
unsigned long cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int s) { return "cuDNN"; }
