/* The nbdkit API that libpause is built on. bindgen reads this header, and
 * through it the installed nbdkit-filter.h; build.rs says what is taken.
 */
#include <nbdkit-filter.h>

/* Filter API 6 (nbdkit 1.16) with the nbdkit_next of 1.26. */
#if !defined (NBDKIT_FILTER_API_VERSION) || NBDKIT_FILTER_API_VERSION != 6
#error "libpause needs nbdkit's filter API 6"
#endif
