/* Moves CLOCK_REALTIME of the process that preloads this (ld.so(8), LD_PRELOAD) by the seconds, a
 * 64-bit integer, that the file named by BULKHEAD_TEST_CLOCK holds at that moment. */
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
	void *mapped = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (mapped != MAP_FAILED)
		shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int failed = syscall(SYS_clock_gettime, clock, time);
	if (!failed && clock == CLOCK_REALTIME && shift)
		time->tv_sec += *shift;
	return failed;
}
