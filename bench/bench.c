/* The measurements: each mode runs one of them on one filter and prints its
 * figures on one line.  scripts/bench alternates the filters, takes the medians
 * and makes the table; how a filter is loaded and called lives in host.c.
 *
 *   host pread SO THREADS CONNECTIONS SECONDS   ns a request, over a direct call
 *   host count SO filter|direct REQUESTS        just makes them (for callgrind)
 *   host drain SO ROUNDS     us: last request ended to `P`; us of CPU, switches
 *   host resume SO ROUNDS WORK      us: `r` to `R`, to the first, the last done
 *   host held SO SECONDS        % of a core, wake-ups a second, of 256 that wait
 *   host churn SO CONNECTIONS   us of a pause, fresh and after; KiB left behind
 *   host seats SO THREADS          us of a pause beside threads that do nothing
 *   host control SOCKET ROUNDS OTHERS   us of a pause, of connect+p+r+close
 *   host busy SOCKET ROUNDS  us: `p` to `P`, the 90th percentile; `r` to `R`, it
 *
 * THREADS are all threads, spread over CONNECTIONS.  WORK is what a held request
 * does in the next layer, in us.  OTHERS stay connected meanwhile.  Figures of
 * rounds are their medians; ns a request are from the shortest of many runs.
 */

#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2

#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

#define NR_CONNECTIONS 16       /* for drain and resume, */
#define NR_WORKERS 16           /* nbdkit's own default for each of them */

static const char *control_path; /* of the filter under test */

static int64_t
clock_ns (clockid_t clock)
{
  struct timespec ts;

  clock_gettime (clock, &ts);
  return ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
}

static int64_t now (void) { return clock_ns (CLOCK_MONOTONIC); }

static void
sleep_ns (int64_t ns)
{
  struct timespec ts = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

  while (nanosleep (&ts, &ts) == -1 && errno == EINTR)
    ;
}

static int
by_value (const void *a, const void *b)
{
  double x = *(const double *) a, y = *(const double *) b;

  return (x > y) - (x < y);
}

/* `of` from 0, the smallest, to 1. */
static double
quantile (double *values, size_t n, double of)
{
  qsort (values, n, sizeof *values, by_value);
  return values[(size_t) (of * (n - 1) + 0.5)];
}

static double
median (double *values, size_t n)
{
  return quantile (values, n, 0.5);
}

/* What this process has had so far of the processors. */
struct usage { double cpu_us, sleeps, switches; };

static struct usage
usage (void)
{
  struct rusage ru;

  getrusage (RUSAGE_SELF, &ru);
  return (struct usage) {
    (ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) * 1e6
      + ru.ru_utime.tv_usec + ru.ru_stime.tv_usec,
    ru.ru_nvcsw,
    ru.ru_nvcsw + ru.ru_nivcsw,
  };
}

/* ---- The operator's side.  The measurements leave their control connection
 * open to the end: a filter whose thread wakes up from the close of it may find
 * its own code unmapped by then.
 */

static int
connect_control (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (strlen (path) >= sizeof addr.sun_path)
    die ("%s: too long for a socket", path);
  strcpy (addr.sun_path, path);
  if (fd == -1 || connect (fd, (struct sockaddr *) &addr, sizeof addr) == -1)
    die ("connect to %s: %s", path, strerror (errno));
  return fd;
}

static void
send_command (int fd, char command)
{
  if (write (fd, &command, 1) != 1)
    die ("command %c: %s", command, strerror (errno));
}

static void
expect (int fd, char reply)
{
  char c = 0;

  if (read (fd, &c, 1) != 1 || c != reply)
    die ("expected the reply %c, got byte %d", reply, c);
}

static void
command (int fd, char c)
{
  send_command (fd, c);
  expect (fd, c & ~0x20);
}

/* Median microseconds from `p` to `P` with no request anywhere. */
static double
idle_pause_us (int fd, unsigned rounds)
{
  double us[rounds];

  for (unsigned i = 0; i < rounds; ++i) {
    int64_t start = now ();
    command (fd, 'p');
    us[i] = (now () - start) / 1e3;
    command (fd, 'r');
  }
  return median (us, rounds);
}

/* ---- pread: what the filter adds to a request. */

static pread_function *door;    /* filter_pread, or direct_pread beside it */
static pthread_barrier_t start_line;
static atomic_bool stop;
static atomic_llong requests_made, wall_spent, cpu_spent;

static __attribute__ ((__noinline__)) void
make_requests (struct connection *conn, unsigned n)
{
  char buf[512];
  int err;

  for (unsigned i = 0; i < n; ++i)
    if (door (&conn->next, conn->handle, buf, sizeof buf, 0, 0, &err) == -1)
      die ("a request failed");
}

static void *
pread_worker (void *conn)
{
  long long n = 0, wall, cpu;

  make_requests (conn, 100);    /* warm up, and let the filter meet the thread */
  pthread_barrier_wait (&start_line);
  wall = now ();
  cpu = clock_ns (CLOCK_THREAD_CPUTIME_ID);
  for (; !atomic_load_explicit (&stop, memory_order_relaxed); n += 1000)
    make_requests (conn, 1000);
  wall_spent += now () - wall;
  cpu_spent += clock_ns (CLOCK_THREAD_CPUTIME_ID) - cpu;
  requests_made += n;
  return NULL;
}

/* Nanoseconds of a core for one request: the threads' elapsed time while each
 * can have a core of its own, their CPU time when they have to share.
 */
static double
request_ns (pread_function *function, unsigned threads, unsigned connections,
            double seconds)
{
  struct connection *conns[connections];
  cpu_set_t cores;
  double spent;

  door = function;
  stop = false;
  requests_made = wall_spent = cpu_spent = 0;
  pthread_barrier_init (&start_line, NULL, threads + 1);
  for (unsigned i = 0; i < connections; ++i)
    conns[i] = start_connection (threads / connections, pread_worker);
  pthread_barrier_wait (&start_line);
  sleep_ns (seconds * 1e9);
  stop = true;
  for (unsigned i = 0; i < connections; ++i)
    join_connection (conns[i]);
  pthread_barrier_destroy (&start_line);

  if (sched_getaffinity (0, sizeof cores, &cores) == -1)
    die ("sched_getaffinity: %s", strerror (errno));
  spent = threads <= (unsigned) CPU_COUNT (&cores) ? wall_spent : cpu_spent;
  return spent / requests_made;
}

/* The shortest of many runs is the one that nothing else has disturbed. */
static void
measure_pread (unsigned threads, unsigned connections, double seconds)
{
  enum { PAIRS = 16 };
  double direct[PAIRS], over[PAIRS];

  for (int i = 0; i < PAIRS; ++i) {
    direct[i] = request_ns (direct_pread, threads, connections,
                            seconds / PAIRS / 2);
    over[i] = request_ns (filter_pread, threads, connections,
                          seconds / PAIRS / 2);
  }
  printf ("%.3f\n", quantile (over, PAIRS, 0) - quantile (direct, PAIRS, 0));
}

/* ---- count: the same loop for an instruction counter. */

static unsigned requests_to_count;

static void *
count_worker (void *conn)
{
  make_requests (conn, requests_to_count);
  return NULL;
}

static void
run_count (pread_function *function, unsigned requests)
{
  door = function;
  requests_to_count = requests;
  join_connection (start_connection (1, count_worker));
}

/* ---- drain: 256 clients' requests are somewhere in the next layer when the
 * pause comes; how long after the last of them is `P` there?
 */

static atomic_llong last_ended;
static atomic_int in_next_layer;

static int
slow_pread (nbdkit_next *next, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags, int *err)
{
  static _Thread_local unsigned seed;
  long long ended, seen;

  (void) next, (void) buf, (void) count, (void) offset, (void) flags, (void) err;
  if (!seed)
    seed = (uintptr_t) &seed >> 6;
  in_next_layer++;
  sleep_ns (5000000 + rand_r (&seed) % 15000000);
  in_next_layer--;
  ended = now ();
  seen = last_ended;
  while (seen < ended &&
         !atomic_compare_exchange_weak (&last_ended, &seen, ended))
    ;
  return 0;
}

static void *
drain_worker (void *conn)
{
  while (!stop)
    make_requests (conn, 1);
  return NULL;
}

static void
measure_drain (unsigned rounds)
{
  struct connection *conns[NR_CONNECTIONS];
  double us[rounds], cpu_us[rounds], switches[rounds];
  int fd = connect_control (control_path);

  door = filter_pread;
  for (int i = 0; i < NR_CONNECTIONS; ++i)
    conns[i] = start_connection (NR_WORKERS, drain_worker);
  for (unsigned i = 0; i < rounds; ++i) {
    struct usage before, after;

    last_ended = 0;
    while (in_next_layer < NR_CONNECTIONS * NR_WORKERS * 15 / 16)
      sleep_ns (1000000);
    before = usage ();
    command (fd, 'p');
    us[i] = (now () - last_ended) / 1e3;
    after = usage ();
    cpu_us[i] = after.cpu_us - before.cpu_us;
    switches[i] = after.switches - before.switches;
    if (last_ended == 0)
      die ("P before any request has ended");
    if (in_next_layer != 0)
      die ("P while %d requests are in the next layer", in_next_layer);
    command (fd, 'r');
  }
  stop = true;
  for (int i = 0; i < NR_CONNECTIONS; ++i)
    join_connection (conns[i]);
  printf ("%.1f %.1f %.1f\n", median (us, rounds), median (cpu_us, rounds),
          median (switches, rounds));
}

/* ---- resume: one held request in each of 256 threads, then `r`. */

static atomic_int nr_asking, nr_done;
static atomic_llong first_done, last_done;
static pthread_barrier_t finish_line;

static void *
resume_worker (void *conn)
{
  long long done, unset = 0, seen;

  nr_asking++;
  make_requests (conn, 1);
  done = now ();
  nr_done++;
  atomic_compare_exchange_strong (&first_done, &unset, done);
  seen = last_done;
  while (seen < done && !atomic_compare_exchange_weak (&last_done, &seen, done))
    ;
  /* The threads' ends must not get into the way of those still held. */
  pthread_barrier_wait (&finish_line);
  return NULL;
}

enum { HELD = NR_CONNECTIONS * NR_WORKERS };

/* Pauses, and has HELD requests wait. */
static void
hold (int fd, struct connection *conns[NR_CONNECTIONS])
{
  nr_asking = nr_done = 0;
  first_done = last_done = 0;
  command (fd, 'p');
  for (int i = 0; i < NR_CONNECTIONS; ++i)
    conns[i] = start_connection (NR_WORKERS, resume_worker);
  while (nr_asking < HELD)
    sleep_ns (1000000);
  sleep_ns (30000000);          /* the last to ask is asleep in the filter too */
  if (nr_done != 0)
    die ("%d requests were let through while paused", nr_done);
}

static int64_t work_ns;

static int
working_pread (nbdkit_next *next, void *buf, uint32_t count, uint64_t offset,
               uint32_t flags, int *err)
{
  int64_t until = clock_ns (CLOCK_THREAD_CPUTIME_ID) + work_ns;

  (void) next, (void) buf, (void) count, (void) offset, (void) flags, (void) err;
  while (clock_ns (CLOCK_THREAD_CPUTIME_ID) < until)
    ;
  return 0;
}

static void
measure_resume (unsigned rounds)
{
  struct connection *conns[NR_CONNECTIONS];
  double reply_us[rounds], first_us[rounds], last_us[rounds];
  int fd = connect_control (control_path);

  door = filter_pread;
  pthread_barrier_init (&finish_line, NULL, HELD + 1);
  for (unsigned i = 0; i < rounds; ++i) {
    int64_t start;

    hold (fd, conns);
    start = now ();
    command (fd, 'r');
    reply_us[i] = (now () - start) / 1e3;
    pthread_barrier_wait (&finish_line);
    first_us[i] = (first_done - start) / 1e3;
    last_us[i] = (last_done - start) / 1e3;
    for (int j = 0; j < NR_CONNECTIONS; ++j)
      join_connection (conns[j]);
  }
  printf ("%.1f %.1f %.1f\n", median (reply_us, rounds),
          median (first_us, rounds), median (last_us, rounds));
}

/* ---- held: what those cost who wait. */

static void
measure_held (double seconds)
{
  struct connection *conns[NR_CONNECTIONS];
  int fd = connect_control (control_path);
  struct usage before, after;

  door = filter_pread;
  pthread_barrier_init (&finish_line, NULL, HELD + 1);
  hold (fd, conns);
  before = usage ();
  sleep_ns (seconds * 1e9);
  after = usage ();
  command (fd, 'r');
  pthread_barrier_wait (&finish_line);
  for (int i = 0; i < NR_CONNECTIONS; ++i)
    join_connection (conns[i]);
  printf ("%.4f %.1f\n", (after.cpu_us - before.cpu_us) / seconds / 1e4,
          (after.sleeps - before.sleeps) / seconds);
}

/* ---- seats: a pause has to look at every thread that makes requests. */

static void
measure_seats (unsigned threads)
{
  enum { AT_ONCE = 100 };
  unsigned n = threads / AT_ONCE;
  struct connection *conns[n];
  int fd = connect_control (control_path);

  door = filter_pread;
  nr_asking = 0;
  pthread_barrier_init (&finish_line, NULL, n * AT_ONCE + 1);
  for (unsigned i = 0; i < n; ++i)
    conns[i] = start_connection (AT_ONCE, resume_worker);
  while (nr_asking < (int) (n * AT_ONCE))
    sleep_ns (1000000);
  printf ("%.1f\n", idle_pause_us (fd, 300));
  pthread_barrier_wait (&finish_line);
  for (unsigned i = 0; i < n; ++i)
    join_connection (conns[i]);
}

/* ---- churn: does a pause remember those who are gone? */

static long
resident_kib (void)
{
  char line[128];
  long kib = -1;
  FILE *fp = fopen ("/proc/self/status", "r");

  while (fp && fgets (line, sizeof line, fp))
    sscanf (line, "VmRSS: %ld", &kib);
  if (fp)
    fclose (fp);
  return kib;
}

/* Twenty at a time, so that threads do live side by side. */
static void
come_and_go (unsigned connections)
{
  enum { AT_ONCE = 20 };
  struct connection *conns[AT_ONCE];

  for (unsigned i = 0; i < connections; i += AT_ONCE) {
    for (unsigned j = 0; j < AT_ONCE; ++j)
      conns[j] = start_connection (1, count_worker);
    for (unsigned j = 0; j < AT_ONCE; ++j)
      join_connection (conns[j]);
  }
}

static void
measure_churn (unsigned connections)
{
  enum { ROUNDS = 3000 };
  int fd = connect_control (control_path);
  double fresh, after;
  long left;

  door = filter_pread;
  requests_to_count = 1;
  fresh = idle_pause_us (fd, ROUNDS);
  come_and_go (1000);           /* the host's own thread stacks and heap */
  left = -resident_kib ();
  come_and_go (connections - 1000);
  left += resident_kib ();
  after = idle_pause_us (fd, ROUNDS);
  printf ("%.3f %.3f %ld\n", fresh, after, left);
}

/* ---- control: the operator's waiting time, at a server that runs elsewhere. */

static void
measure_control (const char *path, unsigned rounds, unsigned others)
{
  double us[rounds], open_connection;
  int fd;

  for (unsigned i = 0; i < others; ++i)
    connect_control (path);
  fd = connect_control (path);
  open_connection = idle_pause_us (fd, rounds);
  close (fd);
  for (unsigned i = 0; i < rounds; ++i) {
    int64_t start = now ();
    fd = connect_control (path);
    command (fd, 'p');
    command (fd, 'r');
    close (fd);
    us[i] = (now () - start) / 1e3;
  }
  printf ("%.3f %.3f\n", open_connection, median (us, rounds));
}

/* The same at a server that others keep busy. */
static void
measure_busy (const char *path, unsigned rounds)
{
  double p_us[rounds], r_us[rounds];
  int fd = connect_control (path);

  for (unsigned i = 0; i < rounds; ++i) {
    int64_t start;

    sleep_ns (20000000);
    start = now ();
    command (fd, 'p');
    p_us[i] = (now () - start) / 1e3;
    sleep_ns (5000000);         /* so that all clients have requests that wait */
    start = now ();
    command (fd, 'r');
    r_us[i] = (now () - start) / 1e3;
  }
  printf ("%.1f %.1f %.1f %.1f\n", median (p_us, rounds),
          quantile (p_us, rounds, 0.9), median (r_us, rounds),
          quantile (r_us, rounds, 0.9));
}

/* ---- */

static char scratch[64];        /* a short path: it is for a socket */
static char scratch_socket[sizeof scratch + sizeof "/control"];

static void
remove_scratch (void)
{
  unlink (scratch_socket);
  rmdir (scratch);
}

int
main (int argc, char *argv[])
{
  const char *mode = argc > 1 ? argv[1] : "";

  alarm (60);                   /* a filter that never answers ends here */

  if (strcmp (mode, "control") == 0 && argc == 5) {
    measure_control (argv[2], atoi (argv[3]), atoi (argv[4]));
    return EXIT_SUCCESS;
  }
  if (strcmp (mode, "busy") == 0 && argc == 4) {
    measure_busy (argv[2], atoi (argv[3]));
    return EXIT_SUCCESS;
  }
  if (argc < 4)
    die ("usage: see the top of bench.c");

  snprintf (scratch, sizeof scratch, "%s/host.XXXXXX",
            getenv ("TMPDIR") ? getenv ("TMPDIR") : "/tmp");
  if (!mkdtemp (scratch))
    die ("mkdtemp %s: %s", scratch, strerror (errno));
  sprintf (scratch_socket, "%s/control", scratch);
  control_path = scratch_socket;
  atexit (remove_scratch);
  if (strcmp (mode, "drain") == 0)
    next_layer_pread = slow_pread;
  if (strcmp (mode, "resume") == 0 && argc == 5 && atoi (argv[4])) {
    work_ns = atoi (argv[4]) * INT64_C (1000);
    next_layer_pread = working_pread;
  }
  if (strcmp (mode, "churn") == 0)
    mallopt (M_ARENA_MAX, 1);   /* else its growth hides what the filter keeps */
  load_filter (argv[2], control_path);

  if (strcmp (mode, "pread") == 0 && argc == 6)
    measure_pread (atoi (argv[3]), atoi (argv[4]), atof (argv[5]));
  else if (strcmp (mode, "count") == 0 && argc == 5)
    run_count (strcmp (argv[3], "filter") == 0 ? filter_pread : direct_pread,
               atoi (argv[4]));
  else if (strcmp (mode, "drain") == 0)
    measure_drain (atoi (argv[3]));
  else if (strcmp (mode, "resume") == 0)
    measure_resume (atoi (argv[3]));
  else if (strcmp (mode, "held") == 0)
    measure_held (atof (argv[3]));
  else if (strcmp (mode, "seats") == 0)
    measure_seats (atoi (argv[3]));
  else if (strcmp (mode, "churn") == 0)
    measure_churn (atoi (argv[3]));
  else
    die ("usage: see the top of bench.c");

  unload_filter ();
  return EXIT_SUCCESS;
}
