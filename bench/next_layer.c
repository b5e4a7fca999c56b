/* The layer below the filter: an export of 1 GB that can do everything, and does
 * nothing.  Built as a shared object of its own, as plugins are: a processor may
 * take nanoseconds longer to call from the program into a shared object than
 * within either, and a filter must not be charged for that.
 */

#define NBDKIT_API_VERSION 2

#include <errno.h>

#include "host.h"

static int next_prepare (nbdkit_next *next) { (void) next; return 0; }
static int next_yes (nbdkit_next *next) { (void) next; return 1; }
static int next_no (nbdkit_next *next) { (void) next; return 0; }
static int64_t next_size (nbdkit_next *next) { (void) next; return 1 << 30; }
static const char *
next_description (nbdkit_next *next)
{
  (void) next;
  return NULL;
}
static int next_fua (nbdkit_next *next) { (void) next; return NBDKIT_FUA_NATIVE; }
static int next_zero_kind (nbdkit_next *next) { (void) next; return NBDKIT_ZERO_NATIVE; }
static int next_cache_kind (nbdkit_next *next) { (void) next; return NBDKIT_CACHE_NATIVE; }

static int
next_block_size (nbdkit_next *next,
                 uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  (void) next;
  *minimum = *preferred = *maximum = 0;
  return 0;
}

static int
next_pread (nbdkit_next *next, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags, int *err)
{
  (void) next, (void) buf, (void) count, (void) offset, (void) flags, (void) err;
  return 0;
}

static int
next_pwrite (nbdkit_next *next, const void *buf, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  (void) next, (void) buf, (void) count, (void) offset, (void) flags, (void) err;
  return 0;
}

static int
next_flush (nbdkit_next *next, uint32_t flags, int *err)
{
  (void) next, (void) flags, (void) err;
  return 0;
}

static int
next_range (nbdkit_next *next, uint32_t count, uint64_t offset, uint32_t flags,
            int *err)
{
  (void) next, (void) count, (void) offset, (void) flags, (void) err;
  return 0;
}

static int
next_extents (nbdkit_next *next, uint32_t count, uint64_t offset,
              uint32_t flags, struct nbdkit_extents *extents, int *err)
{
  (void) next, (void) count, (void) offset, (void) flags, (void) extents;
  *err = EOPNOTSUPP;
  return -1;
}

int
direct_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  (void) next, (void) handle, (void) buf, (void) count, (void) offset;
  (void) flags, (void) err;
  return 0;
}

static const nbdkit_next ops = {
  .prepare = next_prepare, .finalize = next_prepare,
  .get_size = next_size, .export_description = next_description,
  .block_size = next_block_size,
  .can_write = next_yes, .can_flush = next_yes, .is_rotational = next_no,
  .can_trim = next_yes, .can_zero = next_zero_kind,
  .can_fast_zero = next_yes, .can_extents = next_yes, .can_fua = next_fua,
  .can_multi_conn = next_yes, .can_cache = next_cache_kind,
  .pread = next_pread, .pwrite = next_pwrite, .flush = next_flush,
  .trim = next_range, .zero = next_range, .extents = next_extents,
  .cache = next_range,
};

const nbdkit_next *next_layer (void) { return &ops; }
