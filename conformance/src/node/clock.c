/* Moves CLOCK_REALTIME and CLOCK_MONOTONIC of the process that preloads this (ld.so(8), LD_PRELOAD)
 * by the seconds, two 64-bit integers, that the file named by BULKHEAD_TEST_CLOCK holds then. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *shift;

__attribute__((constructor)) static void map_shift(void)
{
	const char *path = getenv("BULKHEAD_TEST_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (file < 0)
		return;
	void *mapped = mmap(NULL, 2 * sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (mapped != MAP_FAILED)
		shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int failed = syscall(SYS_clock_gettime, clock, time);
	if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC))
		time->tv_sec += shift[clock == CLOCK_MONOTONIC];
	return failed;
}
