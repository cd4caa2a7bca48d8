/*
 * The asynchronous part of libnrt's C interface as it is documented from runtime 2.31 on, in our
 * own words. Runtimes before that export functions of the same names with other arguments (an
 * error tracker in place of the status to fill in), so these must not be called unless
 * nrt_get_version says 2.31 or later. Only what has one documented form is declared.
 */
#ifndef APPLIANCE_NRTA_H
#define APPLIANCE_NRTA_H

#include <stdbool.h>
#include <stdint.h>

#include "nrt.h"

/* A request: the execution unit in the top 16 bits, its sequence number in the low 48. */
typedef uint64_t nrta_seq_t;

/* Kinds of execution units. */
typedef enum {
  NRTA_XU_TENSOR_OP = 0,
  NRTA_XU_COMPUTE = 1,
  NRTA_XU_COLLECTIVES = 2
} nrta_xu_t;

/* Queues an execution and returns; `ret` is filled in when it has finished. The queue is 0. */
NRT_STATUS nrta_execute_schedule(nrt_model_t *model, const nrt_tensor_set_t *input,
                                 nrt_tensor_set_t *output, int queue, NRT_STATUS *ret,
                                 nrta_seq_t *req_sequence);
/* Whether a request has finished. */
NRT_STATUS nrta_is_completed(nrta_seq_t seq, bool *is_completed);
/* The last request of a queue that has finished. */
NRT_STATUS nrta_get_sequence(uint32_t lnc_idx, nrta_xu_t xu, int queue, nrta_seq_t *seq);

#endif
