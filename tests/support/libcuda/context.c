/* A libcuda.so.1 that keeps the memory of its GPU in host memory, for the tests: contexts, memory, and the account at the end.

It proves order, ownership, threads and what happens at exit; never numbers. Work runs when it is waited for and not before.
New memory is full of NaN, freed memory cannot be touched, an address on the GPU is no pointer, and what was taken is on a list
until it is given back. HOST_CUDA_REPORT names a file for the account; HOST_CUDA_INTEGRATED=1 makes the GPU share the host's memory. */
#define _GNU_SOURCE
#include "driver.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const Address HIGH = 1ULL << 62;
static const size_t TOTAL = 1ULL << 34;
static const int ADDED = 7; /* the handle of the only context */

Item *items;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int depth;
static int retained, pushed, is_lost, has_ended, faults;
static size_t used;
static char first_fault[200], failing[64];
static int calls_to_failure, failure;

uintptr_t this_thread(void) { return (uintptr_t)pthread_self(); }
void lose(void) { is_lost = 1; }
Result state(void) { return is_lost ? ILLEGAL_ADDRESS : SUCCESS; }

void fault(const char *text) {
    if (!faults++) snprintf(first_fault, sizeof first_fault, "%s", text);
}

Result enter(const char *name, int needs) {
    pthread_mutex_lock(&mutex);
    if (has_ended) return DEINITIALIZED;
    if (needs && !depth) {
        fault(name);
        return INVALID_CONTEXT;
    }
    if (failing[0] && !strcmp(name, failing) && !--calls_to_failure) {
        failing[0] = 0;
        if (failure == ILLEGAL_ADDRESS) lose();
        return failure;
    }
    if (needs == UNSAFE && breaks_capture()) return CAPTURE_UNSUPPORTED;
    return needs ? state() : SUCCESS;
}

Result leave(Result result) {
    pthread_mutex_unlock(&mutex);
    return result;
}

void host_cuda_forgive(void) { faults = first_fault[0] = 0; }

/* The call of that name, counted from 1 from now on, fails; 700 is for good. */
void host_cuda_fail(const char *name, int call, int result) {
    snprintf(failing, sizeof failing, "%s", name);
    calls_to_failure = call, failure = result;
}

Item *add(Kind kind, size_t size) {
    Item *item = calloc(1, sizeof *item);
    item->kind = kind, item->size = size, item->next = items, items = item;
    return item;
}

Item *find(Kind kind, const void *handle) {
    for (Item *item = items; item; item = item->next)
        if (item == handle && item->kind == kind) return item;
    return NULL;
}

static void forget(Item *gone) {
    Item **link = &items;
    while (*link != gone) link = &(*link)->next;
    *link = gone->next;
    free(gone);
}

Result drop(Kind kind, void *handle) {
    Item *item = find(kind, handle);
    if (!item) return fault("given back twice"), INVALID_HANDLE;
    clear(item);
    forget(item);
    return SUCCESS;
}

/* Memory. `first` of such an item is where it begins. */
static char *start(const Item *item) { return (char *)item->first; }

static Item *around(Kind kind, const char *from, size_t size) {
    for (Item *item = items; item; item = item->next)
        if (item->kind == kind && start(item) <= from && from + size <= start(item) + item->size) return item;
    return NULL;
}

/* The one that begins there; the end of a neighbor may have the same address. */
static Item *at(Kind kind, const char *memory) {
    for (Item *item = items; item; item = item->next)
        if (item->kind == kind && start(item) == memory) return item;
    return NULL;
}

int is_pinned(const void *host, size_t size) { return around(PINNED, host, size) != NULL; }

void *on_gpu(Address address, size_t size) {
    char *pointer = (char *)(uintptr_t)(address ^ HIGH);
    Item *item = around(DEVICE, pointer, size);
    if (!item && (item = around(PINNED, pointer, size)) && !(item->flags & MAPPED)) item = NULL;
    return item ? pointer : NULL;
}

static char *take(Kind kind, size_t size, unsigned flags) {
    if (size > TOTAL - used) return NULL;
    char *memory = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    Item *item = add(kind, size);
    item->first = (Operation *)memset(memory, 0xFF, size), item->flags = flags;
    if (kind == DEVICE) used += size;
    return memory;
}

static Result give_back(Kind kind, char *memory) {
    Item *item = at(kind, memory);
    if (!item) return fault("memory that is not allocated is freed"), INVALID_VALUE;
    drain_all(); /* the driver waits too */
    if (kind == DEVICE) used -= item->size;
    madvise(memory, item->size, MADV_DONTNEED);
    mprotect(memory, item->size, PROT_NONE); /* for good, so that nobody reads it through an old pointer */
    item->first = NULL;
    forget(item);
    return SUCCESS;
}

Result cuMemAlloc_v2(Address *address, size_t size) {
    ENTER(UNSAFE);
    char *memory = size ? take(DEVICE, size, 0) : NULL;
    *address = (Address)(uintptr_t)memory ^ HIGH;
    return leave(memory ? SUCCESS : size ? OUT_OF_MEMORY : INVALID_VALUE);
}
Result cuMemFree_v2(Address address) {
    ENTER(UNSAFE);
    return leave(give_back(DEVICE, (char *)(uintptr_t)(address ^ HIGH)));
}
Result cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    ENTER(UNSAFE);
    *memory = take(PINNED, size, flags);
    return leave(*memory ? SUCCESS : OUT_OF_MEMORY);
}
Result cuMemAllocHost_v2(void **memory, size_t size) { return cuMemHostAlloc(memory, size, 0); }
Result cuMemFreeHost(void *memory) {
    ENTER(UNSAFE);
    return leave(give_back(PINNED, memory));
}
Result cuMemHostGetDevicePointer_v2(Address *address, void *memory, unsigned flags) {
    ENTER(CONTEXT);
    Item *item = at(PINNED, memory);
    if (flags || !item || !(item->flags & MAPPED)) return leave(INVALID_VALUE);
    *address = (Address)(uintptr_t)memory ^ HIGH;
    return leave(SUCCESS);
}
Result cuMemGetInfo_v2(size_t *free_size, size_t *total) {
    ENTER(CONTEXT);
    *free_size = TOTAL - used, *total = TOTAL;
    return leave(SUCCESS);
}

/* Device and context. */
Result cuInit(unsigned flags) { return has_ended ? DEINITIALIZED : flags ? INVALID_VALUE : SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int index) { return *device = index, index ? 101 : SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *size, int device) { return *size = TOTAL, device ? 101 : SUCCESS; }
Result cuDeviceGetName(char *name, int length, int device) {
    return snprintf(name, length, "Host memory"), device ? 101 : SUCCESS;
}
Result cuDeviceGetPCIBusId(char *name, int length, int device) {
    return snprintf(name, length, "0000:00:00.0"), device ? 101 : SUCCESS;
}
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *integrated = getenv("HOST_CUDA_INTEGRATED");
    *value = attribute == 75 ? 9 : attribute == 16 ? 132 : attribute == 18 ? integrated && *integrated == '1' : 0;
    return device ? 101 : SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER(ANY);
    *context = (void *)&ADDED, retained++;
    return leave(device ? 101 : SUCCESS);
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER(ANY);
    if (--retained < 0) fault("the context is released more often than retained");
    return leave(device ? 101 : SUCCESS);
}
Result cuDevicePrimaryCtxRelease(int device) { return cuDevicePrimaryCtxRelease_v2(device); }
Result cuCtxPushCurrent_v2(void *context) {
    ENTER(ANY);
    if (context != &ADDED || retained < 1) return leave(INVALID_CONTEXT);
    depth++, pushed++;
    return leave(SUCCESS);
}
Result cuCtxPopCurrent_v2(void **context) {
    ENTER(ANY);
    if (!depth) return leave(INVALID_CONTEXT);
    depth--, pushed--;
    if (context) *context = (void *)&ADDED;
    return leave(SUCCESS);
}
Result cuCtxGetCurrent(void **context) { return *context = depth ? (void *)&ADDED : NULL, SUCCESS; }
Result cuCtxGetDevice(int *device) { return *device = 0, depth ? SUCCESS : INVALID_CONTEXT; }
Result cuCtxDetach(void *context) { return (void)context, fault("cuCtxDetach of the primary context"), SUCCESS; }
Result cuCtxDestroy_v2(void *context) { return (void)context, fault("cuCtxDestroy of the primary context"), INVALID_CONTEXT; }
Result cuCtxSynchronize(void) {
    ENTER(UNSAFE);
    drain_all();
    return leave(state());
}

Result cuGetErrorString(Result result, const char **text) {
    static __thread char message[40];
    snprintf(message, sizeof message, "error %d of the double", result);
    return *text = message, SUCCESS;
}
Result cuGetErrorName(Result result, const char **text) { return cuGetErrorString(result, text); }

Result cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    (void)version, (void)flags;
    const char *renamed = strcmp(name, "cuGraphInstantiate") ? name : "cuGraphInstantiateWithFlags";
    Dl_info here;
    char versioned[100];
    dladdr((void *)cuInit, &here);
    void *library = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(versioned, sizeof versioned, "%s_v2", renamed);
    if (!(*function = dlsym(library, versioned))) *function = dlsym(library, renamed);
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
Result cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

/* Writes what is left to HOST_CUDA_REPORT, as JSON; also called at the very end. */
void host_cuda_report(void) {
    static const char *names[KINDS] = {"device", "pinned", "streams", "events", "graphs", "executables"};
    int counts[KINDS] = {0}, pending = 0;
    const char *path = getenv("HOST_CUDA_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    pthread_mutex_lock(&mutex);
    for (Item *item = items; item; item = item->next) {
        counts[item->kind]++;
        pending += item->kind == STREAM && item->first;
    }
    fputs("{", file);
    for (int kind = 0; kind < KINDS; kind++) fprintf(file, "\"%s\": %d, ", names[kind], counts[kind]);
    fprintf(file, "\"pending\": %d, \"pushed\": %d, \"retained\": %d, \"faults\": %d, \"fault\": \"%s\"}\n", pending, pushed,
            retained, faults, first_fault);
    pthread_mutex_unlock(&mutex);
    fclose(file);
}

__attribute__((destructor)) static void end(void) {
    host_cuda_report();
    has_ended = 1;
}
