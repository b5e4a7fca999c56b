/* What the measurements need of the host: loading a filter, connections with
 * their worker threads, and the next layer below the filter.  No measurement
 * lives here.
 */

#ifndef BENCH_HOST_H
#define BENCH_HOST_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

typedef int pread_function (nbdkit_next *next, void *handle, void *buf,
                            uint32_t count, uint64_t offset, uint32_t flags,
                            int *err);

/* One client of the server.  `next` comes first, as in nbdkit: it is what the
 * filter sees, and the next layer finds its own data behind it.
 */
struct connection {
  nbdkit_next next;
  void *handle;
  unsigned nr_workers;
  void *(*worker) (void *connection);
  pthread_t thread;
  int client[2];                /* the client's socket: [1] is its own end */
  int status_pipe[2];           /* watched by nbdkit_nanosleep as well */
};

/* How a request enters the filter; and the next layer's own no-op behind the
 * same signature, for the cost of calling it directly.
 */
extern pread_function *filter_pread;
extern pread_function direct_pread;

/* The next layer, and what it shall do with a request instead of nothing (set
 * before the first connection).
 */
extern const nbdkit_next *next_layer (void);
extern int (*next_layer_pread) (nbdkit_next *next, void *buf, uint32_t count,
                                uint64_t offset, uint32_t flags, int *err);

/* From dlopen to after_fork, and from cleanup to dlclose. */
extern void load_filter (const char *so, const char *control_path);
extern void unload_filter (void);

/* A connection's own thread runs open and prepare, starts the workers and
 * joins them, then runs finalize and close.  Every worker calls worker
 * (connection) and may use `this_connection`.
 */
extern struct connection *start_connection (unsigned nr_workers,
                                            void *(*worker) (void *));
extern void join_connection (struct connection *);
extern _Thread_local struct connection *this_connection;

/* Something of the bench itself failed: says what, and exits. */
extern _Noreturn void die (const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

#endif /* BENCH_HOST_H */
