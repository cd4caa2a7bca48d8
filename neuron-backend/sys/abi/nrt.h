/*
 * The part of libnrt's C interface that the appliance uses, declared in our own words from its
 * public documentation. No vendor's header is copied: names, types and numbers are the interface
 * itself, everything else is ours. `cargo xtask bindings` makes ../src/bindings.rs of this, and
 * `cargo xtask bindings --headers DIR` holds it against the headers of an installed runtime.
 *
 * Unless a comment says otherwise a function returns an NRT_STATUS and may be called only between
 * nrt_init and nrt_close.
 */
#ifndef APPLIANCE_NRT_H
#define APPLIANCE_NRT_H

#include <stddef.h>
#include <stdint.h>

/* What a call came to. Newer runtimes return numbers that are not in this list. */
typedef enum {
  NRT_SUCCESS = 0,
  NRT_FAILURE = 1,                       /* something else; the log tells more */
  NRT_INVALID = 2,                       /* an argument, a NEFF or a tensor's name is wrong */
  NRT_INVALID_HANDLE = 3,                /* a handle that is none */
  NRT_RESOURCE = 4,                      /* no memory left on the device or for its rings */
  NRT_TIMEOUT = 5,                       /* an execution took longer than the limit */
  NRT_HW_ERROR = 6,                      /* the hardware failed */
  NRT_QUEUE_FULL = 7,                    /* no room in an execution queue */
  NRT_LOAD_NOT_ENOUGH_NC = 9,            /* the NEFF wants more cores than there are */
  NRT_UNSUPPORTED_NEFF_VERSION = 10,     /* the NEFF is of a newer compiler */
  NRT_FAIL_HOST_MEM_ALLOC = 11,          /* no memory left on the host */
  NRT_UNINITIALIZED = 13,                /* called before nrt_init */
  NRT_CLOSED = 14,                       /* called after nrt_close */
  NRT_QUEUE_EMPTY = 15,                  /* nothing in the queue that was asked */
  NRT_EXEC_UNIT_UNRECOVERABLE = 101,     /* only a new process can use this core again */
  NRT_EXEC_BAD_INPUT = 1002,             /* a tensor is missing or of the wrong size */
  NRT_EXEC_COMPLETED_WITH_NUM_ERR = 1003, /* a result is not a number */
  NRT_EXEC_COMPLETED_WITH_ERR = 1004,    /* finished, but not without errors */
  NRT_EXEC_NC_BUSY = 1005,               /* another model or thread has the core */
  NRT_EXEC_OOB = 1006,                   /* a gather or scatter went out of bounds */
  NRT_COLL_PENDING = 1100,               /* a collective has not finished */
  NRT_EXEC_HW_ERR_COLLECTIVES = 1200,    /* a collective is stuck */
  NRT_EXEC_HW_ERR_HBM_UE = 1201,         /* device memory: uncorrectable error */
  NRT_EXEC_HW_ERR_NC_UE = 1202,          /* memory of a core: uncorrectable error */
  NRT_EXEC_HW_ERR_DMA_ABORT = 1203,      /* a DMA engine gave up */
  NRT_EXEC_SW_NQ_OVERFLOW = 1204,        /* notifications were dropped */
  NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE = 1205, /* device memory: repaired by reloading the driver */
  NRT_NETWORK_PROXY_FAILURE = 1206       /* the network between devices failed */
} NRT_STATUS;

/* Who calls. We are NO_FW. */
typedef enum {
  NRT_FRAMEWORK_TYPE_INVALID = 0,
  NRT_FRAMEWORK_TYPE_NO_FW = 1,
  NRT_FRAMEWORK_TYPE_TENSORFLOW = 2,
  NRT_FRAMEWORK_TYPE_PYTORCH = 3,
  NRT_FRAMEWORK_TYPE_MXNET = 4,
  NRT_FRAMEWORK_TYPE_PRECHECK = 5
} nrt_framework_type_t;

/* Where a tensor's bytes are. */
typedef enum {
  NRT_TENSOR_PLACEMENT_DEVICE = 0,
  NRT_TENSOR_PLACEMENT_HOST = 1
} nrt_tensor_placement_t;

/* Which side of a model a tensor is on. */
typedef enum {
  NRT_TENSOR_USAGE_INPUT = 0,
  NRT_TENSOR_USAGE_OUTPUT = 1
} nrt_tensor_usage_t;

/*
 * Element types, for information only. These numbers changed between versions: nothing may be
 * decided by them or stored. An 8-bit float is reported as INT8.
 */
typedef enum {
  NRT_DTYPE_UNKNOWN = 0,
  NRT_DTYPE_UINT64 = 1,
  NRT_DTYPE_INT8 = 2,
  NRT_DTYPE_UINT8 = 3,
  NRT_DTYPE_INT16 = 4,
  NRT_DTYPE_UINT16 = 5,
  NRT_DTYPE_BFLOAT16 = 6,
  NRT_DTYPE_FLOAT16 = 7,
  NRT_DTYPE_INT32 = 8,
  NRT_DTYPE_UINT32 = 9,
  NRT_DTYPE_FLOAT32 = 10,
  NRT_DTYPE_FP32R = 11,
  NRT_DTYPE_INT64 = 12,
  NRT_DTYPE_FP8_E3 = 13,
  NRT_DTYPE_FP8_E4 = 14,
  NRT_DTYPE_FP8_E5 = 15
} nrt_dtype_t;

/* nrt_instance_info_t.family. Newer runtimes know more. */
enum {
  NRT_INSTANCE_UNKNOWN = 0,
  NRT_INSTANCE_INF1 = 1,
  NRT_INSTANCE_TRN1 = 2,
  NRT_INSTANCE_TRN1N = 3,
  NRT_INSTANCE_INF2 = 4,
  NRT_INSTANCE_TRN2 = 5,
  NRT_INSTANCE_TRN2N = 6,
  NRT_INSTANCE_INF2E = 7,
  NRT_INSTANCE_TRN2P = 8,
  NRT_INSTANCE_TRN2U = 9,
  NRT_INSTANCE_TRN2E = 10,
  NRT_INSTANCE_TRN2EU = 11,
  NRT_INSTANCE_TRN2AC = 12,
  NRT_INSTANCE_TRN2UAC = 13,
  NRT_INSTANCE_TRN3 = 14,
  NRT_INSTANCE_TRN3PDS98 = 15
};

/* nrt_instance_info_t.size. */
enum {
  NRT_INSTANCE_SIZE_1XL = 0,
  NRT_INSTANCE_SIZE_2XL = 1,
  NRT_INSTANCE_SIZE_4XL = 2,
  NRT_INSTANCE_SIZE_6XL = 3,
  NRT_INSTANCE_SIZE_8XL = 4,
  NRT_INSTANCE_SIZE_24XL = 5,
  NRT_INSTANCE_SIZE_32XL = 6,
  NRT_INSTANCE_SIZE_48XL = 7,
  NRT_INSTANCE_SIZE_3XL = 8,
  NRT_INSTANCE_SIZE_UNKNOWN = 9
};

/* Handles. What is behind them is the runtime's own. */
typedef struct nrt_model nrt_model_t;
typedef struct nrt_tensor nrt_tensor_t;
typedef void nrt_tensor_set_t;

/* The runtime's version, 2.34.10.0 for instance. */
typedef struct nrt_version {
  uint64_t rt_major;
  uint64_t rt_minor;
  uint64_t rt_patch;
  uint64_t rt_maintenance;
  char rt_detail[128]; /* ends with a zero */
  char git_hash[64];   /* ends with a zero */
} nrt_version_t;

/* The instance the process is on. */
typedef struct nrt_instance_info {
  uint32_t family;
  uint32_t size;
  char arch_name[16];
  char device_revision[8];
} nrt_instance_info_t;

/* One input or output of a loaded model. */
typedef struct nrt_tensor_info {
  char name[256];
  nrt_tensor_usage_t usage;
  size_t size; /* bytes */
  nrt_dtype_t dtype;
  uint32_t *shape;
  uint32_t ndim;
} nrt_tensor_info_t;

/* All inputs and outputs of a loaded model. */
typedef struct nrt_tensor_info_array {
  uint64_t tensor_count;
  nrt_tensor_info_t tensor_array[];
} nrt_tensor_info_array_t;

/* Where a loaded model is. */
typedef struct nrt_model_info {
  uint32_t vnc;
} nrt_model_info_t;

/* Where a tensor is. */
typedef struct nrt_tensor_device_allocation_info {
  uint64_t physical_address;
  size_t size;
  int hbm_index;
} nrt_tensor_device_allocation_info_t;

/* Bytes of the device memory that serves a core. */
typedef struct nrt_vnc_memory_stats {
  size_t bytes_used;
  size_t bytes_limit;
} nrt_vnc_memory_stats_t;

/* ---- Life of the runtime: once per process ---- */

/* Takes the cores that the environment names. Versions may be empty strings. */
NRT_STATUS nrt_init(nrt_framework_type_t framework, const char *fw_version,
                    const char *fal_version);
/* Gives them back. Every model and tensor is to be gone before. */
void nrt_close(void);

/* ---- What is here: may be called before nrt_init ---- */

NRT_STATUS nrt_get_version(nrt_version_t *ver, size_t size);
/* The name of a status; a string that nobody frees. */
const char *nrt_get_status_as_str(NRT_STATUS status);
NRT_STATUS nrt_get_instance_info(nrt_instance_info_t *info, size_t instance_info_len);
/* Logical cores of the instance, and those of them that this process may take. */
NRT_STATUS nrt_get_total_vnc_count(uint32_t *vnc_count);
NRT_STATUS nrt_get_visible_vnc_count(uint32_t *vnc_count);
/* The same under the names that older runtimes have. */
NRT_STATUS nrt_get_total_nc_count(uint32_t *nc_count);
NRT_STATUS nrt_get_visible_nc_count(uint32_t *nc_count);

/* ---- Models ---- */

/*
 * Loads a NEFF, whose bytes may be freed afterwards. vnc: the first core, counted within the
 * visible ones, or -1 for any. vnc_count: no longer used, -1.
 */
NRT_STATUS nrt_load(const void *neff_bytes, size_t size, int32_t vnc, int32_t vnc_count,
                    nrt_model_t **model);
/* The same as one of ctx_device_count ranks; waits until all of them load. */
NRT_STATUS nrt_load_collectives(const void *neff_bytes, size_t size, int32_t vnc,
                                int32_t vnc_count, uint32_t ctx_device_id,
                                uint32_t ctx_device_count, nrt_model_t **model);
NRT_STATUS nrt_unload(nrt_model_t *model);
NRT_STATUS nrt_get_model_info(const nrt_model_t *model, nrt_model_info_t *info,
                              size_t info_size_in, size_t *info_size_out);
/* Lists inputs and outputs; the list is given back with nrt_free_model_tensor_info. */
NRT_STATUS nrt_get_model_tensor_info(nrt_model_t *model, nrt_tensor_info_array_t **tensor_info);
NRT_STATUS nrt_free_model_tensor_info(nrt_tensor_info_array_t *tensor_info);

/* ---- Tensor sets and executions ---- */

NRT_STATUS nrt_allocate_tensor_set(nrt_tensor_set_t **result);
void nrt_destroy_tensor_set(nrt_tensor_set_t **tensor_set);
/* Adds a tensor, or replaces the one of that name. The tensor must outlive the set. */
NRT_STATUS nrt_add_tensor_to_tensor_set(nrt_tensor_set_t *tensor_set, const char *tensor_name,
                                        nrt_tensor_t *tensor);
NRT_STATUS nrt_get_tensor_from_tensor_set(nrt_tensor_set_t *tensor_set, const char *tensor_name,
                                          nrt_tensor_t **tensor);
/* Runs a model once and waits for it. */
NRT_STATUS nrt_execute(nrt_model_t *model, const nrt_tensor_set_t *input_set,
                       nrt_tensor_set_t *output_set);

/* ---- Tensors ---- */

NRT_STATUS nrt_tensor_allocate(nrt_tensor_placement_t tensor_placement, int vnc, size_t size,
                               const char *name, nrt_tensor_t **tensor);
/* A part of another tensor, which it keeps alive. */
NRT_STATUS nrt_tensor_allocate_slice(const nrt_tensor_t *tensor_source, size_t offset, size_t size,
                                     const char *name, nrt_tensor_t **tensor_slice);
void nrt_tensor_free(nrt_tensor_t **tensor);
NRT_STATUS nrt_tensor_read(const nrt_tensor_t *tensor, void *buf, size_t offset, size_t size);
NRT_STATUS nrt_tensor_write(nrt_tensor_t *tensor, const void *buf, size_t offset, size_t size);
/* Both tensors must be in the memory of the same core. */
NRT_STATUS nrt_tensor_copy(const nrt_tensor_t *src, size_t src_offset, nrt_tensor_t *dst,
                           size_t dst_offset, size_t size);
NRT_STATUS nrt_tensor_memset(nrt_tensor_t *tensor, uint64_t offset, int value, size_t size);
size_t nrt_tensor_get_size(const nrt_tensor_t *tensor);
NRT_STATUS nrt_tensor_get_device_allocation_info(const nrt_tensor_t *tensor,
                                                 nrt_tensor_device_allocation_info_t *alloc_info);

/* ---- Memory ---- */

NRT_STATUS nrt_get_vnc_memory_stats(uint32_t vnc, nrt_vnc_memory_stats_t *stats,
                                    size_t stats_size_in, size_t *stats_size_out);

#endif
