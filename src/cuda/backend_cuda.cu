/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend: opens a device, owns its stream, keeps its faults, and fills the op table. The ops live in the
 * files beside this one.
 */
#include "cuda/device_cuda.h"

extern "C" {
#include "backend/device_attn.h"
#include "base/pool.h"
}

#include <stdio.h>
#include <string.h>

static const size_t LANDING_BYTES = (size_t)1 << 20, DIRECT_BYTES = (size_t)1 << 14;

/* ---- faults ---- */

/* After which every call fails, until the process ends. */
static bool is_final(cudaError_t e)
{
    switch (e) {
    case cudaErrorIllegalAddress: case cudaErrorIllegalInstruction: case cudaErrorMisalignedAddress: case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc: case cudaErrorHardwareStackError: case cudaErrorLaunchFailure: case cudaErrorLaunchTimeout: case cudaErrorAssert:
    case cudaErrorECCUncorrectable: case cudaErrorNvlinkUncorrectable: case cudaErrorExternalDevice: case cudaErrorUnknown: return true;
    default: return false;
    }
}

/* The driver must compile what the build holds for other capabilities. */
static bool is_of_compiler(cudaError_t e)
{
    return e == cudaErrorInvalidPtx || e == cudaErrorUnsupportedPtxVersion || e == cudaErrorJitCompilerNotFound || e == cudaErrorJitCompilationDisabled;
}

sr_status sr_cuda_fail(cudaError_t e, const char *what, sr_error *err)
{
    if (e == cudaErrorNoKernelImageForDevice)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA: this build has no code for the device's compute capability; want 8.0 to 9.0");
    if (is_of_compiler(e))
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA: this build has code for the device only as PTX, and the driver cannot compile it: %s",
                       cudaGetErrorString(e));
    return sr_fail(err, e == cudaErrorInsufficientDriver ? SR_ERR_UNSUPPORTED : SR_ERR_RESOURCE, "CUDA: %s: %s%s", what, cudaGetErrorString(e),
                   is_final(e) ? "; the device is lost to this process" : "");
}

void sr_cuda_note(struct backend_cuda *c, cudaError_t e, const char *what)
{
    if (e != cudaSuccess && c->fault.status == SR_OK) sr_cuda_fail(e, what, &c->fault);
}

void sr_cuda_note_status(struct backend_cuda *c, const sr_error *err)
{
    if (c->fault.status == SR_OK) c->fault = *err;
}

/* ---- memory ---- */

static uint64_t mem_available(struct backend *b)
{
    size_t left = 0, all = 0;
    (void)b;
    return cudaMemGetInfo(&left, &all) == cudaSuccess ? left : 0;
}

sr_status sr_cuda_new(struct backend *b, void **out, size_t bytes, const char *what, sr_error *err)
{
    const cudaError_t e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaSuccess) return SR_OK;
    *out = NULL;
    cudaGetLastError();
    if (e != cudaErrorMemoryAllocation) return sr_cuda_fail(e, what, err);
    const uint64_t left = mem_available(b);
    return sr_fail(err, SR_ERR_RESOURCE, "%s: %zu bytes of device memory, %llu free: %llu are missing", what, bytes,
                   (unsigned long long)left, (unsigned long long)(bytes > left ? bytes - left : bytes));
}

void sr_cuda_delete(struct backend *b, void *block)
{
    if (block) sr_cuda_note(sr_cuda_of(b), cudaFree(block), "free");
}

static void mem_clear(struct backend *b, void *dst, size_t bytes)
{
    struct backend_cuda *c = sr_cuda_of(b);
    sr_cuda_note(c, cudaMemsetAsync(dst, 0, bytes, c->stream), "clear");
}

/* From pageable memory: the driver has copied src when the call returns. */
static void upload(struct backend *b, void *dst, const void *src, size_t bytes)
{
    struct backend_cuda *c = sr_cuda_of(b);
    sr_cuda_note(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, c->stream), "upload");
}

/* Whether the device itself may write there. */
static bool is_page_locked(const void *p)
{
    cudaPointerAttributes a;
    return cudaPointerGetAttributes(&a, p) == cudaSuccess && a.type == cudaMemoryTypeHost;
}

/* By way of page-locked memory, unless it is such itself, which the device writes at the rate of the bus. */
static void download_part(struct backend_cuda *c, void *dst, const void *src, size_t bytes)
{
    void *to = c->landing && !(bytes >= DIRECT_BYTES && is_page_locked(dst)) ? c->landing : dst;
    sr_cuda_note(c, cudaMemcpyAsync(to, src, bytes, cudaMemcpyDeviceToHost, c->stream), "download");
    sr_cuda_note(c, cudaStreamSynchronize(c->stream), "step");
    if (to != dst && c->fault.status == SR_OK) memcpy(dst, to, bytes);
}

static sr_status download(struct backend *b, void *dst, const void *src, size_t bytes, sr_error *err)
{
    struct backend_cuda *c = sr_cuda_of(b);
    size_t at = 0;
    do {
        const size_t part = bytes - at < LANDING_BYTES ? bytes - at : LANDING_BYTES;
        download_part(c, static_cast<uint8_t *>(dst) + at, static_cast<const uint8_t *>(src) + at, part);
        at += part;
    } while (at < bytes && c->fault.status == SR_OK);
    if (c->fault.status == SR_OK) return SR_OK;
    if (err) *err = c->fault;
    const sr_status st = c->fault.status;
    c->fault.status = SR_OK; /* told; a lost device fails the next call anew */
    return st;
}

static sr_status shared_new(struct backend *b, void **host, void **there, size_t bytes, const char *what, sr_error *err)
{
    (void)b;
    cudaError_t e = cudaHostAlloc(host, bytes ? bytes : 1, cudaHostAllocMapped);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        *host = NULL;
        return sr_fail_memory(err, bytes, what);
    }
    if (e == cudaSuccess) {
        memset(*host, 0, bytes);
        e = cudaHostGetDevicePointer(there, *host, 0);
    }
    return e == cudaSuccess ? SR_OK : sr_cuda_fail(e, what, err);
}

static void shared_free(struct backend *b, void *host)
{
    if (host) sr_cuda_note(sr_cuda_of(b), cudaFreeHost(host), "free");
}

/* ---- recordings: CUDA graphs ---- */

struct recording { cudaGraphExec_t exec; };

static sr_status record_begin(struct backend *b, sr_error *err)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const cudaError_t e = cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal);
    if (e != cudaSuccess) return sr_cuda_fail(e, "recording a step", err);
    c->recording = true;
    c->recordings++;
    return SR_OK;
}

static sr_status record_end(struct backend *b, struct recording **out, sr_error *err)
{
    struct backend_cuda *c = sr_cuda_of(b);
    cudaGraph_t graph = NULL;
    c->recording = false;
    cudaError_t e = cudaStreamEndCapture(c->stream, &graph);
    if (e != cudaSuccess) return c->fault.status != SR_OK ? (*err = c->fault, c->fault.status) : sr_cuda_fail(e, "recording a step", err);
    struct recording *r = static_cast<struct recording *>(sr_alloc_zero(1, sizeof *r));
    if (!r) {
        cudaGraphDestroy(graph);
        return sr_fail_memory(err, sizeof *r, "recorded step");
    }
    e = cudaGraphInstantiate(&r->exec, graph, 0);
    cudaGraphDestroy(graph);
    if (e != cudaSuccess) {
        sr_free(r);
        return sr_cuda_fail(e, "recording a step", err);
    }
    *out = r;
    return SR_OK;
}

static void replay(struct backend *b, struct recording *r)
{
    struct backend_cuda *c = sr_cuda_of(b);
    sr_cuda_note(c, cudaGraphLaunch(r->exec, c->stream), "replaying a step");
}

static void record_free(struct backend *b, struct recording *r)
{
    if (!r) return;
    sr_cuda_note(sr_cuda_of(b), cudaGraphExecDestroy(r->exec), "free");
    sr_free(r);
}

/* ---- the table ---- */

static void close_backend(struct backend *b)
{
    struct backend_cuda *c = sr_cuda_of(b);
    if (c->stream) cudaStreamSynchronize(c->stream);
    sr_cuda_attn_fini(c);
    sr_cuda_moe_fini(c);
    sr_cuda_matmul_fini(c);
    sr_cuda_rope_fini(c);
    sr_cuda_fuse_fini(c);
    if (c->stream) cudaStreamDestroy(c->stream);
    if (c->landing) cudaFreeHost(c->landing);
    sr_pool_free(c->base.pool);
    sr_free(c);
}

static const char *describe(const struct backend *b) { return reinterpret_cast<const struct backend_cuda *>(b)->text; }

static const struct backend_ops cuda_ops = {
    .name = "cuda",
    .close = close_backend,
    .describe = describe,
    .mem_new = sr_cuda_new,
    .mem_free = sr_cuda_flushed<sr_cuda_delete>,
    .mem_clear = sr_cuda_flushed<mem_clear>,
    .upload = sr_cuda_flushed<upload>,
    .download = sr_cuda_flushed<download>,
    .mem_available = mem_available,
    .shared_new = shared_new,
    .shared_free = sr_cuda_flushed<shared_free>,
    .read = sr_cuda_flushed<sr_cuda_read>,
    .record_begin = sr_cuda_flushed<record_begin>,
    .record_end = sr_cuda_flushed<record_end>,
    .replay = sr_cuda_flushed<replay>,
    .record_free = sr_cuda_flushed<record_free>,
    .weight_prepare = sr_cuda_flushed<sr_cuda_weight_prepare>,
    .weight_release = sr_cuda_flushed<sr_cuda_weight_release>,
    .matmul = sr_cuda_matmul,
    .norm = sr_cuda_norm,
    .rope = sr_cuda_rope,
    .silu_mul = sr_cuda_silu_mul,
    .add = sr_cuda_flushed<sr_cuda_add>,
    .add_norm = sr_cuda_add_norm,
    .embed = sr_cuda_flushed<sr_cuda_embed>,
    .topk = sr_cuda_flushed<sr_cuda_topk>,
    .moe = sr_cuda_flushed<sr_cuda_moe>,
    .device_attn = &sr_cuda_attn_ops,
    .kv_append = NULL,
    .attn_prefill = NULL,
    .attn_rows = NULL,
    .attn_logits = NULL,
    .attn_finish = NULL,
    .attn_cosine = NULL,
    .sketch_encode = NULL,
    .sketch_choose = NULL,
    .sketch_more = NULL,
    .attn_reserve = NULL,
    .matmul_reserve = sr_cuda_flushed<sr_cuda_matmul_reserve>,
    .moe_reserve = sr_cuda_flushed<sr_cuda_moe_reserve>,
};

/* ---- opening ---- */

static sr_status check_device(int index, struct cudaDeviceProp *prop, sr_error *err)
{
    int n = 0, driver = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "device cuda: the driver serves CUDA %d.%d, this build wants %d.%d", driver / 1000,
                       driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e != cudaSuccess || n == 0)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "device cuda: no NVIDIA GPU is usable here (%s)",
                       e != cudaSuccess ? cudaGetErrorString(e) : "the driver lists none");
    if (index < 0 || index >= n)
        return sr_fail(err, SR_ERR_USAGE, "device CUDA%d: the driver lists CUDA0 to CUDA%d", index, n - 1);
    e = cudaGetDeviceProperties(prop, index);
    if (e != cudaSuccess) return sr_cuda_fail(e, "device properties", err);
    if (prop->major < 8)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "device CUDA%d: %s has compute capability %d.%d, want 8.0 or more", index,
                       prop->name, prop->major, prop->minor);
    return SR_OK;
}

static __global__ void probe_kernel() {}

/* Whether the code that runs here was compiled for a capability that has dependent launches: PTX of 8.0 has none. */
static sr_status find_overlap(struct backend_cuda *c, int major, sr_error *err)
{
    struct cudaFuncAttributes f;
    const cudaError_t e = cudaFuncGetAttributes(&f, probe_kernel);
    if (e != cudaSuccess) return sr_cuda_fail(e, "loading the kernels", err);
    c->overlaps = major >= 9 && f.ptxVersion >= 90;
    return SR_OK;
}

static sr_status start(struct backend_cuda *c, const struct cudaDeviceProp *p, int n_threads, sr_error *err)
{
    cudaError_t e = cudaSetDevice(c->device);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) return sr_cuda_fail(e, "opening the device", err);
    if (cudaMallocHost(&c->landing, LANDING_BYTES) != cudaSuccess) { /* it goes without, more slowly */
        c->landing = NULL;
        cudaGetLastError();
    }
    SR_TRY(find_overlap(c, p->major, err));
    SR_TRY(sr_pool_new(&c->base.pool, n_threads, err));
    SR_TRY(sr_cuda_fuse_init(c, err));
    return sr_cuda_matmul_init(c, err);
}

extern "C" sr_status sr_backend_cuda_open(struct backend **out, int index, int n_threads, sr_error *err)
{
    struct cudaDeviceProp prop;
    SR_TRY(check_device(index, &prop, err));
    struct backend_cuda *c = static_cast<struct backend_cuda *>(sr_alloc_zero(1, sizeof *c));
    if (!c) return sr_fail_memory(err, sizeof *c, "cuda backend");
    c->base.ops = &cuda_ops;
    c->base.has_own_memory = 1;
    c->device = index;
    c->n_sms = prop.multiProcessorCount;
    c->shared_bytes = prop.sharedMemPerBlockOptin;
    snprintf(c->text, sizeof c->text, "cuda, %.48s, compute capability %d.%d", prop.name, prop.major, prop.minor);
    const sr_status st = start(c, &prop, n_threads, err);
    if (st != SR_OK) {
        close_backend(&c->base);
        return st;
    }
    *out = &c->base;
    return SR_OK;
}

extern "C" int sr_backend_cuda_device(int index, char *line, size_t bytes)
{
    int n = 0;
    struct cudaDeviceProp p;
    size_t left = 0, all = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || index >= n || cudaGetDeviceProperties(&p, index) != cudaSuccess) return 0;
    if (cudaSetDevice(index) == cudaSuccess) cudaMemGetInfo(&left, &all);
    snprintf(line, bytes, "CUDA%d: %s (%zu MiB, %zu MiB free)", index, p.name, all >> 20, left >> 20);
    return 1;
}
