/* The floor of the benchmark: a filter that does nothing but call the next
 * layer, so that the cost of being a filter at all can be told from the cost of
 * a gate.  No pausing lives here.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

static int
passthrough_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count,
                   uint64_t offset, uint32_t flags, int *err)
{
  (void) handle;
  return next->pread (next, buf, count, offset, flags, err);
}

static struct nbdkit_filter filter = {
  .name  = "passthrough",
  .pread = passthrough_pread,
};

NBDKIT_REGISTER_FILTER(filter)
