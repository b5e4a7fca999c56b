/* Loads any filter as nbdkit would: the nbdkit_* functions that filters import,
 * the life of a filter in nbdkit's order, connections and their threads.  No NBD
 * protocol and no plugin: what is left of a request is the filter.  The next
 * layer lives in next_layer.c, what is measured in bench.c.
 */

#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host.h"

static void *library;
static struct nbdkit_filter *filter;
static int quit_pipe[2];        /* readable once the server is shutting down */

_Thread_local struct connection *this_connection;
pread_function *filter_pread;
int (*next_layer_pread) (nbdkit_next *, void *, uint32_t, uint64_t, uint32_t,
                         int *);

void
die (const char *fs, ...)
{
  va_list args;

  fputs ("bench host: ", stderr);
  va_start (args, fs);
  vfprintf (stderr, fs, args);
  va_end (args);
  fputc ('\n', stderr);
  exit (EXIT_FAILURE);
}

/* ---- What filters import from the server.  A filter that wants a function
 * which is missing here is refused by dlopen, which names it.
 */

void
nbdkit_verror (const char *fs, va_list args)
{
  int saved_errno = errno;

  fputs ("bench host: filter: error: ", stderr);
  vfprintf (stderr, fs, args);
  fputc ('\n', stderr);
  errno = saved_errno;
}

void
nbdkit_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  nbdkit_verror (fs, args);
  va_end (args);
}

/* As in an nbdkit without -v. */
void nbdkit_vdebug (const char *fs, va_list args) { (void) fs; (void) args; }
void nbdkit_debug (const char *fs, ...) { (void) fs; }

void nbdkit_set_error (int err) { errno = err; }

char *nbdkit_realpath (const char *path) { return realpath (path, NULL); }

char *
nbdkit_absolute_path (const char *path)
{
  char cwd[PATH_MAX], *ret;

  if (path[0] == '/')
    return strdup (path);
  if (!getcwd (cwd, sizeof cwd) || asprintf (&ret, "%s/%s", cwd, path) == -1)
    return NULL;
  return ret;
}

/* Lives as long as the process; a bench need not give it back earlier. */
const char *nbdkit_strdup_intern (const char *str) { return strdup (str); }
const char *
nbdkit_strndup_intern (const char *str, size_t n)
{
  return strndup (str, n);
}

int
nbdkit_parse_bool (const char *str)
{
  static const char *const yes[] = { "1", "true", "t", "yes", "y", "on" };
  static const char *const no[] = { "0", "false", "f", "no", "n", "off" };

  for (size_t i = 0; i < sizeof yes / sizeof yes[0]; ++i) {
    if (strcasecmp (str, yes[i]) == 0) return 1;
    if (strcasecmp (str, no[i]) == 0) return 0;
  }
  nbdkit_error ("not a boolean: %s", str);
  return -1;
}

int
nbdkit_parse_int (const char *what, const char *str, int *r)
{
  char end;

  if (sscanf (str, "%i%c", r, &end) == 1)
    return 0;
  nbdkit_error ("%s: not a number: %s", what, str);
  return -1;
}

int
nbdkit_parse_unsigned (const char *what, const char *str, unsigned *r)
{
  return nbdkit_parse_int (what, str, (int *) r);
}

int
nbdkit_parse_uint32_t (const char *what, const char *str, uint32_t *r)
{
  return nbdkit_parse_int (what, str, (int *) r);
}

int64_t
nbdkit_parse_size (const char *str)
{
  char *end;
  long long size = strtoll (str, &end, 0);
  const char *unit = *end ? strchr ("bkmgt", *end | 0x20) : "b";

  if (!unit || size < 0) {
    nbdkit_error ("not a size: %s", str);
    return -1;
  }
  return size << (10 * (strchr ("bkmgt", *unit) - "bkmgt"));
}

/* The same work as in the server: one ppoll, all signals blocked, on the end of
 * the server, on the connection's status and on the client's socket.
 */
int
nbdkit_nanosleep (unsigned sec, unsigned nsec)
{
  struct timespec ts = { .tv_sec = sec, .tv_nsec = nsec };
  struct connection *conn = this_connection;
  struct pollfd fds[] = {
    { .fd = quit_pipe[0], .events = POLLIN },
    { .fd = conn ? conn->status_pipe[0] : -1, .events = POLLIN },
    { .fd = conn ? conn->client[0] : -1, .events = POLLRDHUP },
  };
  sigset_t all;

  sigfillset (&all);
  switch (ppoll (fds, sizeof fds / sizeof fds[0], &ts, &all)) {
  case 0:
    return 0;
  case -1:
    nbdkit_error ("ppoll: %s", strerror (errno));
    return -1;
  default:
    nbdkit_error ("aborting sleep");
    errno = ESHUTDOWN;
    return -1;
  }
}

/* Not on standard input and output, which is all that it is asked for. */
int nbdkit_stdio_safe (void) { return 1; }

/* Nothing here ever makes one of these, but the cleanup code of the filters
 * that nbdkit ships refers to them.
 */
void nbdkit_extents_free (struct nbdkit_extents *exts) { (void) exts; }
void nbdkit_exports_free (struct nbdkit_exports *exps) { (void) exps; }

nbdkit_backend *
nbdkit_context_get_backend (nbdkit_context *context)
{
  (void) context;
  return NULL;
}

/* ---- The life of a filter.  A callback that the filter lacks is skipped: what
 * would follow it here is the next layer's, which does nothing.
 */

static int
next_config (nbdkit_backend *backend, const char *key, const char *value)
{
  (void) backend, (void) key, (void) value;
  return 0;
}
static int next_config_complete (nbdkit_backend *backend) { (void) backend; return 0; }
static int
next_preconnect (nbdkit_backend *backend, int readonly)
{
  (void) backend, (void) readonly;
  return 0;
}

static int
next_open (nbdkit_context *context, int readonly, const char *exportname)
{
  (void) context, (void) readonly, (void) exportname;
  return 0;
}

#define MUST(callback, ...)                                             \
  do {                                                                  \
    if (filter->callback && filter->callback (__VA_ARGS__) == -1)       \
      die ("the filter's " #callback " failed");                        \
  } while (0)

void
load_filter (const char *so, const char *control_path)
{
  struct nbdkit_filter *(*filter_init) (void);
  int thread_model = NBDKIT_THREAD_MODEL_PARALLEL;

  signal (SIGPIPE, SIG_IGN);
  if (pipe (quit_pipe) == -1)
    die ("pipe: %s", strerror (errno));

  library = dlopen (so, RTLD_NOW | RTLD_GLOBAL);
  if (!library)
    die ("%s", dlerror ());
  *(void **) &filter_init = dlsym (library, "filter_init");
  if (!filter_init)
    die ("%s: no filter_init", so);
  filter = filter_init ();
  if (filter->_api_version != NBDKIT_FILTER_API_VERSION ||
      strcmp (filter->_version, NBDKIT_VERSION_STRING) != 0)
    die ("%s is for nbdkit %s, the host for %s",
         so, filter->_version, NBDKIT_VERSION_STRING);

  if (filter->load)
    filter->load ();
  MUST (config, next_config, NULL, "pause-control", control_path);
  MUST (config_complete, next_config_complete, NULL);
  if (filter->thread_model) {
    /* Newer releases pass the next layer's model; older filters ignore it. */
    int (*model) (int) = (int (*) (int)) (void *) filter->thread_model;
    thread_model = model (thread_model);
    if (thread_model == -1)
      die ("the filter's thread_model failed");
  }
  MUST (get_ready, thread_model);
  MUST (after_fork, NULL);

  filter_pread = filter->pread ? filter->pread : direct_pread;
}

void
unload_filter (void)
{
  close (quit_pipe[1]);
  if (filter->cleanup)
    filter->cleanup (NULL);
  if (filter->unload)
    filter->unload ();
  dlclose (library);
}

/* What the server asks while it negotiates with a client. */
static void
negotiate (struct connection *conn)
{
  nbdkit_next *next = &conn->next;
  void *handle = conn->handle;
  uint32_t minimum, preferred, maximum;

  if (filter->get_size)
    filter->get_size (next, handle);
  if (filter->export_description)
    filter->export_description (next, handle);
  MUST (block_size, next, handle, &minimum, &preferred, &maximum);
  MUST (can_write, next, handle);
  MUST (can_flush, next, handle);
  MUST (is_rotational, next, handle);
  MUST (can_trim, next, handle);
  MUST (can_zero, next, handle);
  MUST (can_fast_zero, next, handle);
  MUST (can_extents, next, handle);
  MUST (can_fua, next, handle);
  MUST (can_multi_conn, next, handle);
  MUST (can_cache, next, handle);
}

static void *
run_worker (void *arg)
{
  struct connection *conn = this_connection = arg;

  conn->worker (conn);
  return NULL;
}

static void *
run_connection (void *arg)
{
  struct connection *conn = this_connection = arg;
  nbdkit_next *next = &conn->next;
  pthread_t workers[conn->nr_workers];

  MUST (preconnect, next_preconnect, NULL, 0);
  if (filter->open) {
    conn->handle = filter->open (next_open, (nbdkit_context *) conn, 0, "", 0);
    if (!conn->handle)
      die ("the filter's open failed");
  }
  MUST (prepare, next, conn->handle, 0);
  negotiate (conn);

  for (unsigned i = 0; i < conn->nr_workers; ++i)
    if (pthread_create (&workers[i], NULL, run_worker, conn) != 0)
      die ("cannot start a worker thread");
  for (unsigned i = 0; i < conn->nr_workers; ++i)
    pthread_join (workers[i], NULL);

  MUST (finalize, next, conn->handle);
  if (filter->close)
    filter->close (conn->handle);
  return NULL;
}

struct connection *
start_connection (unsigned nr_workers, void *(*worker) (void *))
{
  struct connection *conn = calloc (1, sizeof *conn);

  if (!conn ||
      socketpair (AF_UNIX, SOCK_STREAM, 0, conn->client) == -1 ||
      pipe (conn->status_pipe) == -1)
    die ("cannot make a connection: %s", strerror (errno));
  conn->next = *next_layer ();
  if (next_layer_pread)
    conn->next.pread = next_layer_pread;
  conn->nr_workers = nr_workers;
  conn->worker = worker;
  if (pthread_create (&conn->thread, NULL, run_connection, conn) != 0)
    die ("cannot start a connection's thread");
  return conn;
}

void
join_connection (struct connection *conn)
{
  pthread_join (conn->thread, NULL);
  close (conn->client[0]), close (conn->client[1]);
  close (conn->status_pipe[0]), close (conn->status_pipe[1]);
  free (conn);
}
